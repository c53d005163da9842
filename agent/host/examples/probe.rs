//! What the container tests run inside a container: looks around and says what it sees. `probe WORD…`
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "it exists to print, and to fail loudly"
)]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["exit", code] => std::process::exit(code.parse().unwrap()),
        ["print", text] => println!("{text}"),
        ["both"] => {
            println!("to stdout");
            let _ = writeln!(std::io::stderr(), "to stderr");
        }
        ["lines", count] => (0..count.parse::<u32>().unwrap()).for_each(|n| println!("line {n}")),
        ["flood", bytes] => flood(bytes.parse().unwrap()),
        ["fds"] => fds(),
        ["look", ref paths @ ..] => paths.iter().for_each(|path| look(path)),
        ["owner", ref paths @ ..] => paths.iter().for_each(|path| owner(path)),
        ["device", kind, major, minor] => device(kind, major, minor),
        ["status"] => print!("{}", fs::read_to_string("/proc/self/status").unwrap()),
        ["whoami"] => whoami(),
        ["calls"] => calls(),
        ["hog", mebibytes] => hog(mebibytes.parse().unwrap()),
        ["forks", count] => forks(count.parse().unwrap()),
        ["cat"] => drop(std::io::copy(&mut std::io::stdin(), &mut std::io::stdout())),
        ["shout"] => shout(),
        ["wait"] => wait(),
        ["die"] => std::process::abort(),
        ["write", path, text] => {
            fs::write(path, text).unwrap_or_else(|error| println!("{path}: {error}"))
        }
        ["tty"] => tty(),
        _ => println!("unknown words {words:?}"),
    }
}

fn flood(bytes: usize) {
    let line = [b'x'; 1023]
        .iter()
        .chain(b"\n")
        .copied()
        .collect::<Vec<_>>();
    let mut out = std::io::stdout().lock();
    for _ in 0..bytes / line.len() {
        out.write_all(&line).unwrap();
    }
}

fn fds() {
    let mut fds: Vec<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            // The directory being read is open too.
            (!target.starts_with("/proc")).then(|| entry.file_name().into_string().unwrap())
        })
        .collect();
    fds.sort();
    println!("{}", fds.join(" "));
}

fn look(path: &str) {
    let seen = match fs::symlink_metadata(path) {
        Err(error) => format!("error {}", error.raw_os_error().unwrap_or(0)),
        Ok(there) if there.is_dir() => {
            format!(
                "directory {}",
                fs::read_dir(path).map_or(0, Iterator::count)
            )
        }
        Ok(_) => match fs::read(path) {
            Ok(content) => format!("file {:?}", String::from_utf8_lossy(&content)),
            Err(error) => format!("error {}", error.raw_os_error().unwrap_or(0)),
        },
    };
    println!("{path} {seen}");
}

fn owner(path: &str) {
    use std::os::unix::fs::MetadataExt;
    let there = fs::metadata(path).unwrap();
    let mode = there.mode() & 0o7777;
    println!("{path} {} {} {mode:o}", there.uid(), there.gid());
}

fn errno(status: i64) -> i32 {
    if status < 0 {
        std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)
    } else {
        0
    }
}

fn device(kind: &str, major: &str, minor: &str) {
    let bits = if kind == "b" {
        libc::S_IFBLK
    } else {
        libc::S_IFCHR
    };
    let number = libc::makedev(major.parse().unwrap(), minor.parse().unwrap());
    // SAFETY: the path ends with a NUL.
    let made = unsafe { libc::mknod(c"/node".as_ptr(), bits | 0o600, number) };
    println!("mknod {}", errno(i64::from(made)));
    let opened =
        fs::File::open("/node").map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0);
    println!("open {opened}");
    let _ = fs::remove_file("/node");
}

fn whoami() {
    // SAFETY: these calls cannot fail and touch no memory but the array given.
    let (uid, gid, groups) = unsafe {
        let mut groups = [0; 64];
        let count = libc::getgroups(64, groups.as_mut_ptr());
        let count = usize::try_from(count).unwrap();
        (libc::getuid(), libc::getgid(), groups[..count].to_vec())
    };
    println!("{uid} {gid} {groups:?}");
    println!("{}", std::env::current_dir().unwrap().display());
    println!(
        "{}",
        fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap()
            .trim()
    );
    let mut env: Vec<String> = std::env::vars()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    env.sort();
    println!("{}", env.join(","));
}

/// What the system call filter does.
fn calls() {
    let child = std::process::Command::new("/proc/self/exe")
        .args(["exit", "0"])
        .status();
    println!("fork {}", child.is_ok_and(|status| status.success()));
    let thread = std::thread::spawn(|| ()).join();
    println!("thread {}", thread.is_ok());
    // SAFETY: none of these reads memory before the filter or a permission check refuses it.
    unsafe {
        println!(
            "unshare {}",
            errno(i64::from(libc::unshare(libc::CLONE_NEWUSER)))
        );
        println!(
            "keyctl {}",
            errno(libc::syscall(libc::SYS_keyctl, 0, 0, 0, 0, 0))
        );
        println!("clone3 {}", errno(libc::syscall(libc::SYS_clone3, 0, 0)));
        let vsock = libc::socket(40, libc::SOCK_STREAM, 0);
        println!("vsock {}", errno(i64::from(vsock)));
        let namespaces = libc::CLONE_NEWUTS | libc::SIGCHLD;
        let flags = libc::c_long::from(namespaces);
        let child = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
        if child == 0 {
            libc::_exit(0);
        }
        println!("clone-newuts {}", errno(child));
    }
}

fn hog(mebibytes: usize) {
    let mut held = Vec::new();
    for _ in 0..mebibytes {
        held.push(vec![1_u8; 1 << 20]);
    }
    println!("held {}", held.len());
}

fn forks(count: usize) {
    let children = (0..count).map(|_| {
        std::process::Command::new("/proc/self/exe")
            .arg("wait")
            .spawn()
    });
    let children: Vec<_> = children.collect();
    println!(
        "forked {}",
        children.iter().filter(|child| child.is_ok()).count()
    );
    children
        .into_iter()
        .flatten()
        .for_each(|mut child| drop(child.kill()));
}

fn shout() {
    for line in std::io::stdin().lines() {
        println!("{}!", line.unwrap());
    }
    println!("end of input");
}

/// Says `ready`, waits for SIGTERM, says `bye` and ends with 7.
fn wait() {
    extern "C" fn stop(_: libc::c_int) {
        // SAFETY: both calls may be made in a signal handler.
        unsafe {
            libc::write(1, b"bye\n".as_ptr().cast(), 4);
            libc::_exit(7);
        }
    }
    let handler: extern "C" fn(libc::c_int) = stop;
    // SAFETY: the handler does only what a handler may.
    unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) };
    println!("ready");
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}

fn tty() {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let stdin = std::io::stdin();
    // SAFETY: the structure is the one that TIOCGWINSZ fills.
    let status = unsafe { libc::ioctl(stdin.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    println!("tty {}", errno(i64::from(status)));
    let mut byte = [0];
    // The test sets the size, then sends a line.
    let _ = stdin.lock().read(&mut byte);
    // SAFETY: as above.
    unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) };
    println!("size {} {}", size.ws_row, size.ws_col);
}
