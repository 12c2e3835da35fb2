fn main() -> anyhow::Result<()> {
    rowhouse::cli::run()
}
