/// Requests make and drop many small things; this takes less time for it than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    if let Err(error) = rowhouse::cli::run() {
        eprintln!("Error: {error:#}");
        std::process::exit(1);
    }
}
