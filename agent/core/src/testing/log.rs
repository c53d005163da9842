//! A modelled raft log: proposals come late, out of order, twice, or not at all, and sometimes nobody
//! tells their author what became of them.

use crate::{
    rng::Rng,
    store::{Applied, ApplyError, Entry, Store, View},
    time::Now,
};

/// What can go wrong, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogFaults {
    /// A proposal is never committed.
    pub lost: u64,
    /// A proposal is committed, and its author is told that nobody knows.
    pub untold: u64,
    /// A proposal is committed twice.
    pub repeated: u64,
    /// A commit takes up to so many milliseconds.
    pub delay_ms: u64,
}

/// Names a proposal for its author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What its author hears of a proposal.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It was committed; one result per proposal of the entry.
    Committed(Vec<Result<Applied, ApplyError>>),
    /// It may have been committed or not.
    Unknown,
}

/// The log and the state that it leads to.
#[derive(Debug)]
pub struct ModelLog {
    /// What goes wrong from now on.
    pub faults: LogFaults,
    store: Store,
    index: u64,
    tickets: u64,
    queue: Vec<Queued>,
    rng: Rng,
}

#[derive(Debug)]
struct Queued {
    due: Now,
    ticket: Ticket,
    entry: Entry,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Commit,
    CommitUntold,
    Lose,
}

impl ModelLog {
    /// An empty log without faults.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self {
            faults: LogFaults::default(),
            store: Store::default(),
            index: 0,
            tickets: 0,
            queue: Vec::new(),
            rng,
        }
    }

    /// The committed state.
    #[must_use]
    pub fn view(&self) -> View {
        self.store.view()
    }

    /// Takes an entry. Its outcome comes from a later [`ModelLog::step`].
    pub fn propose(&mut self, entry: Entry, now: Now) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let roll = self.rng.below(1000);
        let faults = self.faults;
        let fate = match roll {
            roll if roll < faults.lost => Fate::Lose,
            roll if roll < faults.lost + faults.untold => Fate::CommitUntold,
            _ => Fate::Commit,
        };
        if self.rng.below(1000) < faults.repeated {
            let due = self.due(now);
            self.queue.push(Queued {
                due,
                // Nobody waits for the second copy.
                ticket: Ticket(0),
                entry: entry.clone(),
                fate,
            });
        }
        let due = self.due(now);
        self.queue.push(Queued {
            due,
            ticket,
            entry,
            fate,
        });
        ticket
    }

    fn due(&mut self, now: Now) -> Now {
        let delay = self.rng.below(self.faults.delay_ms + 1);
        now + std::time::Duration::from_millis(delay)
    }

    /// Commits what is due.
    pub fn step(&mut self, now: Now) -> Vec<(Ticket, Outcome)> {
        let mut queue = std::mem::take(&mut self.queue);
        queue.sort_by_key(|queued| queued.due);
        let mut outcomes = Vec::new();
        for queued in queue {
            if queued.due > now {
                self.queue.push(queued);
                continue;
            }
            let outcome = match queued.fate {
                Fate::Lose => Outcome::Unknown,
                Fate::Commit => Outcome::Committed(self.commit(&queued.entry)),
                Fate::CommitUntold => {
                    self.commit(&queued.entry);
                    Outcome::Unknown
                }
            };
            outcomes.push((queued.ticket, outcome));
        }
        outcomes
    }

    /// A new leader has been elected and has committed the first entry of its term. What was under way is
    /// committed before that, or never: raft drops it.
    pub fn new_term(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        queue.sort_by_key(|queued| queued.due);
        for queued in queue {
            if self.rng.below(2) == 0 {
                self.commit(&queued.entry);
            }
        }
        self.commit(&Entry::default());
    }

    fn commit(&mut self, entry: &Entry) -> Vec<Result<Applied, ApplyError>> {
        self.index += 1;
        self.store.apply(self.index, entry)
    }
}
