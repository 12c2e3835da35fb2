fn main() {
    if let Err(error) = rowhouse::cli::run() {
        eprintln!("Error: {error:#}");
        std::process::exit(1);
    }
}
