//! `skepd`, the node agent, and `skep`, its command line: one program, told apart by the name it is called by.

use std::process::ExitCode;

fn main() -> ExitCode {
    skepd::main()
}
