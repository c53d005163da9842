//! Flags that say how many tasks a service has and over what they are spread.

use anyhow::{Result, anyhow, bail};
use clap::{Args, ValueEnum};
use skep_core::api::{
    ModeKind, PlacementPreference, ServiceMode, ServiceSpec, SpreadOver,
    service::{Global, Replicated, ReplicatedJob},
};

use super::service_flags::placement;

/// `--mode` of a new service.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Mode {
    /// A number of equal tasks
    Replicated,
    /// One task on each eligible node
    Global,
    /// Tasks that run to their end, a number of times
    ReplicatedJob,
    /// A task that runs to its end on each eligible node
    GlobalJob,
}

impl Mode {
    /// The mode before its numbers are set.
    pub(super) fn begin(self) -> ServiceMode {
        let mut mode = ServiceMode::default();
        match self {
            Mode::Replicated => mode.replicated = Some(Replicated { replicas: Some(1) }),
            Mode::Global => mode.global = Some(Global {}),
            Mode::ReplicatedJob => mode.replicated_job = Some(ReplicatedJob::default()),
            Mode::GlobalJob => mode.global_job = Some(Global {}),
        }
        mode
    }
}

/// The numbers of a mode.
#[derive(Debug, Default, Args)]
pub(super) struct Numbers {
    /// Number of tasks
    #[arg(long)]
    replicas: Option<u64>,
    /// Tasks of a job that run at a time; all of them if left out
    #[arg(long, value_name = "NUMBER")]
    max_concurrent: Option<u64>,
    /// At most so many tasks on a node
    #[arg(long, value_name = "NUMBER")]
    replicas_max_per_node: Option<u64>,
}

impl Numbers {
    /// Puts what was given into a spec.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<()> {
        let kind = spec.mode.kind();
        let per_node = matches!(kind, ModeKind::Global | ModeKind::GlobalJob);
        if self.replicas.is_some() && per_node {
            bail!("replicas can only be used with replicated or replicated-job mode");
        }
        if self.replicas_max_per_node.is_some() && per_node {
            bail!("replicas-max-per-node can only be used with replicated or replicated-job mode");
        }
        match &mut spec.mode.replicated_job {
            Some(job) => {
                job.total_completions = self.replicas.or(job.total_completions);
                let concurrent = self.max_concurrent.or(job.max_concurrent);
                job.max_concurrent = concurrent.or(self.replicas);
            }
            None if self.max_concurrent.is_some() => {
                bail!("max-concurrent can only be used with replicated-job mode");
            }
            None => {
                if let Some(replicas) = self.replicas {
                    spec.mode.replicated = Some(Replicated {
                        replicas: Some(replicas),
                    });
                }
            }
        }
        if let Some(most) = self.replicas_max_per_node {
            placement(spec).max_replicas = most;
        }
        Ok(())
    }
}

/// Takes placement preferences away and adds others, each `spread=LABEL`.
pub(super) fn edit_preferences(
    spec: &mut ServiceSpec,
    add: &[String],
    remove: &[String],
) -> Result<()> {
    if add.is_empty() && remove.is_empty() {
        return Ok(());
    }
    let gone: Vec<_> = remove
        .iter()
        .map(|it| preference(it))
        .collect::<Result<_>>()?;
    let new: Vec<_> = add.iter().map(|it| preference(it)).collect::<Result<_>>()?;
    let preferences = &mut placement(spec).preferences;
    preferences.retain(|have| !gone.contains(have));
    preferences.extend(new);
    Ok(())
}

fn preference(text: &str) -> Result<PlacementPreference> {
    let parts = text
        .split_once('=')
        .filter(|(strategy, _)| !strategy.is_empty());
    let (strategy, label) = parts.ok_or_else(|| {
        anyhow!("{text:?}: placement preference must be of the format \"<strategy>=<arg>\"")
    })?;
    if strategy != "spread" {
        bail!("unsupported placement preference {strategy} (only spread is supported)");
    }
    Ok(PlacementPreference {
        spread: Some(SpreadOver {
            spread_descriptor: label.to_owned(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(mode: Mode) -> ServiceSpec {
        ServiceSpec {
            mode: mode.begin(),
            ..ServiceSpec::default()
        }
    }

    #[test]
    fn a_job_runs_all_at_once_unless_it_is_told_otherwise() {
        let job = |replicas, max_concurrent| {
            let numbers = Numbers {
                replicas,
                max_concurrent,
                ..Numbers::default()
            };
            let mut spec = spec(Mode::ReplicatedJob);
            numbers.apply(&mut spec).unwrap();
            let job = spec.mode.replicated_job.unwrap();
            (job.concurrent(), job.total())
        };
        assert_eq!(job(None, None), (1, 1));
        assert_eq!(job(Some(5), None), (5, 5));
        assert_eq!(job(Some(5), Some(2)), (2, 5));
        assert_eq!(job(None, Some(2)), (2, 2));
    }

    #[test]
    fn numbers_of_another_mode_are_refused() {
        let refusal = |mode, numbers: Numbers| {
            let refused = numbers.apply(&mut spec(mode));
            refused.unwrap_err().to_string()
        };
        for mode in [Mode::Global, Mode::GlobalJob] {
            let replicas = Numbers {
                replicas: Some(1),
                ..Numbers::default()
            };
            assert!(refusal(mode, replicas).starts_with("replicas can only be used with"));
            let most = Numbers {
                replicas_max_per_node: Some(1),
                ..Numbers::default()
            };
            assert!(refusal(mode, most).starts_with("replicas-max-per-node can only be used with"));
        }
        for mode in [Mode::Global, Mode::GlobalJob, Mode::Replicated] {
            let concurrent = Numbers {
                max_concurrent: Some(1),
                ..Numbers::default()
            };
            assert!(refusal(mode, concurrent).starts_with("max-concurrent can only be used with"));
        }
    }

    #[test]
    fn preferences_keep_their_order() {
        let mut spec = spec(Mode::Replicated);
        let texts = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let add = texts(&["spread=node.labels.zone", "spread=node.labels.rack"]);
        edit_preferences(&mut spec, &add, &[]).unwrap();
        let zone = texts(&["spread=node.labels.zone"]);
        edit_preferences(&mut spec, &texts(&["spread=engine.labels.disk"]), &zone).unwrap();
        let kept = placement(&mut spec).preferences.iter();
        let kept: Vec<_> = kept.filter_map(|it| it.spread.clone()).collect();
        let labels: Vec<_> = kept
            .iter()
            .map(|it| it.spread_descriptor.as_str())
            .collect();
        assert_eq!(labels, ["node.labels.rack", "engine.labels.disk"]);
        for wrong in ["node.labels.zone", "=x", "binpack=node.labels.zone"] {
            assert!(
                edit_preferences(&mut spec, &texts(&[wrong]), &[]).is_err(),
                "{wrong}"
            );
        }
    }
}
