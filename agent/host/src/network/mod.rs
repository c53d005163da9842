//! A node's network: look at it, change it, hear of changes.
//!
//! [`NetHost`] carries out what `skep_core::network` planned and reports what is there in the same
//! words. It decides nothing; the one thing it remembers, also across a restart, is which rules it
//! wrote at which count of nftables transactions, so that rules need not be read back.

mod notes;
mod place;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use skep_core::network::{NetOp, NetState, Ns, Scope, Step, state::LinkName};
use tokio::sync::Mutex;

use self::notes::Notes;
use self::place::{Inside, Place, all_failed, is_entry, is_inside, op_name, report};
use crate::{
    error::{HostError, Result},
    netlink::{
        failed,
        monitor::{Changes, Monitor},
        observe::{self, Seen},
        route::RouteSocket,
    },
    netns::{self, Identity, Namespaces},
};

/// How many namespaces are looked at at once.
const PARALLEL_LOOKS: usize = 8;
/// How many entries of one kind are in flight at once.
const PARALLEL_ENTRIES: usize = 64;
/// How many `nft` run at once.
const PARALLEL_TABLES: usize = 4;

/// All of a node's network.
#[derive(Debug)]
pub struct NetHost {
    namespaces: Namespaces,
    notes: Notes,
    host: OwnedFd,
    changes: Arc<Changes>,
    places: Mutex<BTreeMap<Ns, Place>>,
}

impl NetHost {
    /// The network of the machine, as the calling thread sees it.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn new() -> Result<Self> {
        Ok(Self::at(netns::current()?, netns::DIRECTORY))
    }

    /// A network whose host namespace is `host` and whose others are mounted in `directory`.
    pub fn at(host: OwnedFd, directory: impl Into<PathBuf>) -> Self {
        let directory: PathBuf = directory.into();
        Self {
            notes: Notes::new(directory.with_extension("rules")),
            namespaces: Namespaces::new(directory),
            host,
            changes: Arc::default(),
            places: Mutex::default(),
        }
    }

    /// Waits until something has changed and says where. Changes of our own are among them; the
    /// plan that follows is then empty. IPVS tells nothing: look from time to time all the same.
    pub async fn changed(&self) -> BTreeSet<Ns> {
        self.changes.next().await
    }

    /// Opens a namespace, for what has to be bound in it.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(&self, ns: &Ns) -> Result<OwnedFd> {
        match ns {
            Ns::Named(name) => self.namespaces.open(name),
            Ns::Host => self
                .host
                .try_clone()
                .map_err(|error| failed("open namespace", ns, error)),
        }
    }

    /// Looks at what is there.
    ///
    /// # Errors
    /// The first thing that could not be looked at. A namespace that goes away meanwhile is one.
    pub async fn observe(&self, scope: &Scope) -> Result<NetState> {
        let mut places = self.places.lock().await;
        let present = self.visit(&mut places, scope).await?;
        let looks = present.iter().filter_map(|ns| Some((ns, places.get(ns)?)));
        let looks = looks.map(|(ns, place)| async move {
            let keys = scope.sysctls.get(ns).cloned().unwrap_or_default();
            let seen = observe::observe(&place.route, ns).await;
            let seen = seen.map_err(|error| failed("look at links of", ns, error))?;
            Ok((ns.clone(), seen, place.look(ns, keys).await?))
        });
        let looked: Vec<Result<(Ns, Seen, Inside)>> = stream::iter(looks)
            .buffer_unordered(PARALLEL_LOOKS)
            .collect()
            .await;
        let mut links = BTreeMap::new();
        let mut insides = BTreeMap::new();
        for one in looked {
            let (ns, seen, inside) = one?;
            links.insert(ns.clone(), seen);
            insides.insert(ns, inside);
        }
        observe::join_pairs(&mut links);
        let namespaces = links.into_iter().map(|(ns, seen)| {
            let mut namespace = seen.namespace;
            namespace.links = seen
                .links
                .into_iter()
                .map(|one| (one.name, one.link))
                .collect();
            if let (Some(inside), Some(place)) = (insides.remove(&ns), places.get(&ns)) {
                place.fill_in(inside, &mut namespace);
            }
            (ns, namespace)
        });
        Ok(NetState {
            namespaces: namespaces.collect(),
        })
    }

    /// Makes `places` hold every namespace in scope that is there, and none that is not.
    async fn visit(&self, places: &mut BTreeMap<Ns, Place>, scope: &Scope) -> Result<Vec<Ns>> {
        let names = self.namespaces.list()?.into_iter().map(Ns::Named);
        let there: BTreeSet<Ns> = names.chain([Ns::Host]).collect();
        let same =
            |ns: &Ns, place: &Place| there.contains(ns) && place.identity == self.identity(ns);
        places.retain(|ns, place| same(ns, place));
        let present: Vec<Ns> = there.into_iter().filter(|ns| scope.includes(ns)).collect();
        for ns in &present {
            self.place(places, ns).await?;
        }
        Ok(present)
    }

    fn identity(&self, ns: &Ns) -> Option<Identity> {
        match ns {
            Ns::Host => None,
            Ns::Named(name) => self.namespaces.identity(name),
        }
    }

    async fn place<'p>(
        &self,
        places: &'p mut BTreeMap<Ns, Place>,
        ns: &Ns,
    ) -> Result<&'p mut Place> {
        if !places.contains_key(ns) {
            let fd = self.open(ns)?;
            let identity = self.identity(ns);
            let place = Place {
                identity,
                route: RouteSocket::open(fd.as_fd()).await?,
                _monitor: Monitor::start(fd.as_fd(), ns, &self.changes).await?,
                written: self.notes.read(ns, identity),
                fd,
            };
            places.insert(ns.clone(), place);
        }
        let gone = || HostError::new("find namespace", ns.to_string(), "it is gone");
        places.get_mut(ns).ok_or_else(gone)
    }

    /// Carries out steps in their order and goes on after one that fails; the next look shows what
    /// is missing. One result per step.
    pub async fn apply(&self, ops: &[NetOp]) -> Vec<Result<()>> {
        let mut places = self.places.lock().await;
        let mut indexes = Indexes::default();
        let mut results = Vec::with_capacity(ops.len());
        for batch in ops.chunk_by(together) {
            let done = match batch {
                [op] => vec![self.apply_one(&mut places, &mut indexes, op).await],
                [first, ..] if is_entry(&first.step) => {
                    self.apply_entries(&mut places, &mut indexes, batch).await
                }
                [first, ..] if is_inside(&first.step) => {
                    self.apply_inside(&mut places, batch).await
                }
                _ => self.apply_tables(&mut places, batch).await,
            };
            results.extend(done);
        }
        results
    }

    /// Steps on settings and balancers of one namespace, by one thread in it.
    async fn apply_inside(
        &self,
        places: &mut BTreeMap<Ns, Place>,
        batch: &[NetOp],
    ) -> Vec<Result<()>> {
        let place = match batch.first() {
            Some(first) => self.place(places, &first.ns).await,
            None => return Vec::new(),
        };
        match place {
            Ok(place) => place.apply_inside(batch).await,
            Err(error) => all_failed(batch, &error),
        }
    }

    /// New rules for many namespaces; each takes a program's start, so several run at once.
    async fn apply_tables(
        &self,
        places: &mut BTreeMap<Ns, Place>,
        batch: &[NetOp],
    ) -> Vec<Result<()>> {
        for op in batch {
            // One that cannot be had is missed below, where its step fails.
            let _ = self.place(places, &op.ns).await;
        }
        let replaced: Vec<Result<Option<u32>>> = {
            let places = &*places;
            let replace = |op: NetOp| async move {
                let gone = || HostError::new(op_name(&op.step), op.ns.to_string(), "it is gone");
                places
                    .get(&op.ns)
                    .ok_or_else(gone)?
                    .replace_table(&op)
                    .await
            };
            let all = stream::iter(batch.iter().cloned()).map(replace);
            all.buffered(PARALLEL_TABLES).collect().await
        };
        let note = |(op, done): (&NetOp, Result<Option<u32>>)| {
            let count = done?;
            if let Some(place) = places.get_mut(&op.ns) {
                place.note(&self.notes, op, count);
            }
            Ok(())
        };
        batch.iter().zip(replaced).map(note).collect()
    }

    async fn apply_entries(
        &self,
        places: &mut BTreeMap<Ns, Place>,
        indexes: &mut Indexes,
        batch: &[NetOp],
    ) -> Vec<Result<()>> {
        let Some(first) = batch.first() else {
            return Vec::new();
        };
        let place = match self.place(places, &first.ns).await {
            Ok(place) => place,
            Err(error) => return all_failed(batch, &error),
        };
        let known = indexes.of(&first.ns, &place.route).await;
        let place = &*place;
        stream::iter(batch)
            .map(|op| async { report(op, place.entry(&op.step, known).await) })
            .buffered(PARALLEL_ENTRIES)
            .collect()
            .await
    }

    async fn apply_one(
        &self,
        places: &mut BTreeMap<Ns, Place>,
        indexes: &mut Indexes,
        op: &NetOp,
    ) -> Result<()> {
        match (&op.step, &op.ns) {
            (Step::CreateNamespace, Ns::Named(name)) => {
                let (namespaces, name) = (self.namespaces.clone(), name.clone());
                blocking(op, move || namespaces.create(&name)).await
            }
            (Step::DeleteNamespace, Ns::Named(name)) => {
                places.remove(&op.ns);
                self.notes.remove(&op.ns);
                indexes.forget();
                let (namespaces, name) = (self.namespaces.clone(), name.clone());
                blocking(op, move || namespaces.delete(&name)).await
            }
            (Step::CreateNamespace | Step::DeleteNamespace, Ns::Host) => Err(HostError::new(
                op_name(&op.step),
                "host",
                "it is always there",
            )),
            (Step::CreateVxlan(name, vxlan), ns) => {
                indexes.forget();
                let into = self.open(ns)?;
                let host = self.place(places, &Ns::Host).await?;
                report(op, host.route.create_vxlan(name, vxlan, into.as_fd()).await)
            }
            (Step::CreateVeth(name, peer), ns) => {
                indexes.forget();
                let peer_fd = self.open(&peer.ns)?;
                let here = LinkName {
                    ns: ns.clone(),
                    name: name.clone(),
                };
                let place = self.place(places, ns).await?;
                report(
                    op,
                    place.route.create_veth(name, peer, peer_fd.as_fd()).await,
                )?;
                report(op, place.route.set_peer(name, peer).await)?;
                let other = self.place(places, &peer.ns).await?;
                report(op, other.route.set_peer(&peer.name, &here).await)
            }
            (Step::ReplaceTable(_), ns) => {
                let place = self.place(places, ns).await?;
                let count = place.replace_table(op).await?;
                place.note(&self.notes, op, count);
                Ok(())
            }
            (step, ns) => {
                let place = self.place(places, ns).await?;
                if is_inside(step) {
                    let done = place.apply_inside(std::slice::from_ref(op)).await;
                    return done.into_iter().collect();
                }
                let known = indexes.of(ns, &place.route).await;
                let done = place.entry(step, known).await;
                if matches!(step, Step::CreateBridge(_) | Step::DeleteLink(_)) {
                    indexes.forget();
                }
                report(op, done)
            }
        }
    }
}

/// Whether two steps that follow each other can be carried out as one batch.
fn together(one: &NetOp, next: &NetOp) -> bool {
    let both = |is: fn(&Step) -> bool| is(&one.step) && is(&next.step);
    let same_place = one.ns == next.ns;
    same_place && (both(is_entry) || both(is_inside))
        || both(|step| matches!(step, Step::ReplaceTable(_)))
}

/// Runs what may wait for the kernel off the event loop.
async fn blocking(op: &NetOp, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| HostError::new(op_name(&op.step), op.ns.to_string(), error))?
}

/// Link indexes by name, for the time of one plan.
#[derive(Debug, Default)]
struct Indexes(BTreeMap<Ns, BTreeMap<String, u32>>);

impl Indexes {
    /// Empty when the links cannot be listed: the step that needs one says that it is missing.
    async fn of(&mut self, ns: &Ns, route: &RouteSocket) -> &BTreeMap<String, u32> {
        if !self.0.contains_key(ns) {
            let indexes = route.indexes().await.unwrap_or_default();
            self.0.insert(ns.clone(), indexes);
        }
        self.0.entry(ns.clone()).or_default()
    }

    /// Links have come or gone, maybe in several namespaces.
    fn forget(&mut self) {
        self.0.clear();
    }
}
