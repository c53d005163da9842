//! Where log lines go: the journal under systemd, standard error otherwise.

use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// What is logged unless `SKEP_LOG` says otherwise. The libraries below are chatty about things that the
/// daemon itself reports better.
const FILTER: &str = "info,openraft=warn,h2=warn,hyper=warn,rustls=warn,tonic=warn,zbus=warn";

/// Sets logging up, once, before anything else.
pub fn init() {
    let filter = || EnvFilter::try_from_env("SKEP_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER));
    // systemd sets JOURNAL_STREAM when standard error goes to the journal.
    let journal = std::env::var_os("JOURNAL_STREAM")
        .and_then(|_| tracing_journald::layer().ok())
        .map(|layer| layer.with_filter(filter()));
    let lines = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_filter(filter())
    });
    let registry = tracing_subscriber::registry().with(journal).with(lines);
    // A second call, as in tests, changes nothing.
    let _ = registry.try_init();
}
