//! `skep service`.

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::Value;
use skep_core::api::{NetworkAttachmentConfig, Platform, ServiceSpec};

use super::{
    all_or_first_error, items, logs, output, progress,
    service_dependencies::{Changes, Dependencies},
    service_flags::{self as flags, Lists, Settings},
    service_list::{self, Ls},
    service_mode::{self, Mode},
    task, text,
    transport::{
        Call, IMAGE_RESOLVE, NETWORK_INSPECT, SERVICE_CREATE, SERVICE_INSPECT, SERVICE_REMOVE,
        SERVICE_UPDATE, Transport,
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a service
    Create(Box<Create>),
    /// List the services
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show the logs of the tasks of a service, or of one task
    Logs(logs::ServiceLogs),
    /// List the tasks of services
    Ps(task::Ps),
    /// Show everything about services
    Inspect {
        /// Names or ids
        #[arg(required = true)]
        services: Vec<String>,
    },
    /// Set the number of tasks of services
    Scale {
        /// SERVICE=NUMBER
        #[arg(required = true)]
        replicas: Vec<String>,
        /// Do not wait for the tasks
        #[arg(short, long)]
        detach: bool,
    },
    /// Change a service
    Update(Box<Update>),
    /// Remove services
    #[command(visible_alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true)]
        services: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name; made up if left out
    #[arg(long, default_value = "")]
    name: String,
    /// How many tasks it has
    #[arg(long, default_value = "replicated")]
    mode: Mode,
    /// Label of the service, KEY[=VALUE]
    #[arg(short, long)]
    label: Vec<String>,
    /// Label of its containers, KEY[=VALUE]
    #[arg(long)]
    container_label: Vec<String>,
    /// Environment variable, KEY=VALUE
    #[arg(short, long)]
    env: Vec<String>,
    /// Network to join
    #[arg(long)]
    network: Vec<String>,
    /// Port, [PUBLISHED:]TARGET[/PROTOCOL] or published=…,target=…
    #[arg(short, long)]
    publish: Vec<String>,
    /// Where it may run, KEY==VALUE or KEY!=VALUE
    #[arg(long)]
    constraint: Vec<String>,
    /// What its tasks are spread over, spread=node.labels.KEY or spread=engine.labels.KEY
    #[arg(long)]
    placement_pref: Vec<String>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    lists: Lists,
    #[command(flatten)]
    dependencies: Dependencies,
    /// Do not ask the registry for the image's digest
    #[arg(long)]
    no_resolve_image: bool,
    /// Do not wait for the tasks
    #[arg(short, long)]
    detach: bool,
    /// Image
    image: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// Image
    #[arg(long)]
    image: Option<String>,
    /// Arguments of the command
    #[arg(long)]
    args: Option<String>,
    /// Replace every task even if nothing has changed
    #[arg(long)]
    force: bool,
    /// Back to what it was before the last change
    #[arg(long)]
    rollback: bool,
    /// Set a label of the service
    #[arg(long)]
    label_add: Vec<String>,
    /// Take one away
    #[arg(long)]
    label_rm: Vec<String>,
    /// Set a label of its containers
    #[arg(long)]
    container_label_add: Vec<String>,
    /// Take one away
    #[arg(long)]
    container_label_rm: Vec<String>,
    /// Set an environment variable
    #[arg(long)]
    env_add: Vec<String>,
    /// Take one away
    #[arg(long)]
    env_rm: Vec<String>,
    /// Join a network
    #[arg(long)]
    network_add: Vec<String>,
    /// Leave one
    #[arg(long)]
    network_rm: Vec<String>,
    /// Publish a port
    #[arg(long)]
    publish_add: Vec<String>,
    /// Take one away, by its target port
    #[arg(long)]
    publish_rm: Vec<String>,
    /// Add a placement constraint
    #[arg(long)]
    constraint_add: Vec<String>,
    /// Take one away
    #[arg(long)]
    constraint_rm: Vec<String>,
    /// Add a placement preference
    #[arg(long)]
    placement_pref_add: Vec<String>,
    /// Take one away
    #[arg(long)]
    placement_pref_rm: Vec<String>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    lists: Lists,
    #[command(flatten)]
    dependencies: Changes,
    /// Do not ask the registry for the image's digest
    #[arg(long)]
    no_resolve_image: bool,
    /// Do not wait for the tasks
    #[arg(short, long)]
    detach: bool,
    /// Name or id
    service: String,
}

pub(super) async fn run(transport: &dyn Transport, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(arguments) => create(transport, *arguments).await,
        Verb::Ls(arguments) => service_list::list(transport, arguments).await,
        Verb::Ps(arguments) => task::list(transport, arguments).await,
        Verb::Logs(arguments) => logs::of_service(transport, arguments).await,
        Verb::Inspect { services } => {
            let mut documents = Vec::new();
            for service in services {
                documents.push(inspect(transport, &service).await?);
            }
            output::document(&Value::Array(documents))
        }
        Verb::Scale { replicas, detach } => scale(transport, replicas, detach).await,
        Verb::Update(arguments) => update(transport, *arguments).await,
        Verb::Rm { services } => {
            let mut results = Vec::new();
            for service in services {
                let removed = transport.call(Call::new(SERVICE_REMOVE).on(&service)).await;
                results.push(removed.and_then(|_| output::line(&service)));
            }
            all_or_first_error(results)
        }
    }
}

/// The document of a service.
pub(super) async fn inspect(transport: &dyn Transport, service: &str) -> Result<Value> {
    transport
        .call(Call::new(SERVICE_INSPECT).on(service).with([]))
        .await
}

async fn create(transport: &dyn Transport, arguments: Create) -> Result<()> {
    let mut spec = ServiceSpec {
        name: arguments.name,
        labels: super::network::key_values(&arguments.label),
        mode: arguments.mode.begin(),
        ..ServiceSpec::default()
    };
    let container = flags::container(&mut spec);
    container.image = arguments.image;
    container.args = arguments.args;
    container.labels = super::network::key_values(&arguments.container_label);
    flags::set_env(&mut container.env, arguments.env);
    flags::publish(&mut spec, &arguments.publish)?;
    if !arguments.constraint.is_empty() {
        flags::placement(&mut spec).constraints = arguments.constraint;
    }
    service_mode::edit_preferences(&mut spec, &arguments.placement_pref, &[])?;
    arguments.settings.apply(&mut spec)?;
    arguments.lists.apply(&mut spec)?;
    let container = flags::container(&mut spec);
    arguments.dependencies.apply(transport, container).await?;
    for network in &arguments.network {
        let target = network_id(transport, network).await?;
        join_network(&mut spec, target);
    }
    if !arguments.no_resolve_image {
        pin_image(transport, &mut spec).await;
    }
    let call = Call::new(SERVICE_CREATE).sending(serde_json::to_value(&spec)?);
    let created = transport.call(call).await?;
    show_warnings(&created);
    let id = text(&created, "/ID");
    output::line(id)?;
    if arguments.detach {
        return Ok(());
    }
    progress::watch(transport, id).await
}

async fn update(transport: &dyn Transport, arguments: Update) -> Result<()> {
    let service = inspect(transport, &arguments.service).await?;
    let mut spec: ServiceSpec = serde_json::from_value(service["Spec"].clone())
        .context("the node's service has fields that this skep does not know")?;
    let mut params = [
        ("version", service["Version"]["Index"].to_string()),
        ("rollback", String::new()),
    ];
    if arguments.rollback {
        "previous".clone_into(&mut params[1].1);
    }
    let new_image = arguments.image.is_some();
    let (detach, resolve) = (arguments.detach, !arguments.no_resolve_image);
    let name = arguments.service.clone();
    edit(transport, &mut spec, arguments).await?;
    if new_image && resolve {
        pin_image(transport, &mut spec).await;
    }
    let id = text(&service, "/ID");
    let call = Call::new(SERVICE_UPDATE)
        .on(id)
        .with(params)
        .sending(serde_json::to_value(&spec)?);
    let updated = transport.call(call).await?;
    show_warnings(&updated);
    output::line(&name)?;
    if detach {
        return Ok(());
    }
    progress::watch(transport, id).await
}

/// Makes the changes that the flags ask for.
async fn edit(transport: &dyn Transport, spec: &mut ServiceSpec, given: Update) -> Result<()> {
    let container = flags::container(spec);
    if let Some(image) = given.image {
        container.image = image;
    }
    if let Some(args) = &given.args {
        container.args = flags::words(args)?;
    }
    flags::remove_env(&mut container.env, &given.env_rm);
    flags::set_env(&mut container.env, given.env_add);
    flags::edit_labels(
        &mut container.labels,
        &given.container_label_add,
        &given.container_label_rm,
    );
    flags::edit_labels(&mut spec.labels, &given.label_add, &given.label_rm);
    flags::unpublish(spec, &given.publish_rm)?;
    flags::publish(spec, &given.publish_add)?;
    if !given.constraint_add.is_empty() || !given.constraint_rm.is_empty() {
        let constraints = &mut flags::placement(spec).constraints;
        constraints.retain(|have| !given.constraint_rm.contains(have));
        constraints.extend(given.constraint_add);
    }
    service_mode::edit_preferences(spec, &given.placement_pref_add, &given.placement_pref_rm)?;
    for network in &given.network_rm {
        let id = network_id(transport, network).await?;
        let networks = &mut spec.task_template.networks;
        networks.retain(|joined| joined.target != id && joined.target != *network);
    }
    for network in &given.network_add {
        let id = network_id(transport, network).await?;
        join_network(spec, id);
    }
    given.settings.apply(spec)?;
    given.lists.apply(spec)?;
    let container = flags::container(spec);
    given.dependencies.apply(transport, container).await?;
    if given.force {
        spec.task_template.force_update += 1;
    }
    Ok(())
}

async fn scale(transport: &dyn Transport, replicas: Vec<String>, detach: bool) -> Result<()> {
    let mut wanted = Vec::new();
    for text in &replicas {
        let (service, count) = text
            .split_once('=')
            .ok_or_else(|| anyhow!("{text:?}: use SERVICE=NUMBER"))?;
        let count: u64 = count
            .parse()
            .map_err(|_| anyhow!("{text:?}: {count:?} is not a number of tasks"))?;
        wanted.push((service, count));
    }
    let mut results = Vec::new();
    let mut scaled = Vec::new();
    for (service, count) in wanted {
        let result = scale_one(transport, service, count).await;
        results.push(result.map(|id| scaled.push(id)));
    }
    if !detach {
        for id in scaled {
            results.push(progress::watch(transport, &id).await);
        }
    }
    all_or_first_error(results)
}

async fn scale_one(transport: &dyn Transport, name: &str, count: u64) -> Result<String> {
    let service = inspect(transport, name).await?;
    let mut spec = service["Spec"].clone();
    let mode = &mut spec["Mode"];
    if mode.get("Replicated").is_some() {
        mode["Replicated"]["Replicas"] = count.into();
    } else if mode.get("ReplicatedJob").is_some() {
        mode["ReplicatedJob"]["TotalCompletions"] = count.into();
    } else {
        bail!("{name}: scale can only be used with replicated or replicated-job mode");
    }
    let id = text(&service, "/ID").to_owned();
    let call = Call::new(SERVICE_UPDATE)
        .on(&id)
        .with([("version", service["Version"]["Index"].to_string())])
        .sending(spec);
    transport.call(call).await?;
    output::line(&format!("{name} scaled to {count}"))?;
    Ok(id)
}

async fn network_id(transport: &dyn Transport, network: &str) -> Result<String> {
    let call = Call::new(NETWORK_INSPECT)
        .on(network)
        .with([("scope", "swarm".to_owned())]);
    let found = transport.call(call).await?;
    Ok(text(&found, "/Id").to_owned())
}

fn join_network(spec: &mut ServiceSpec, target: String) {
    let networks = &mut spec.task_template.networks;
    if networks.iter().all(|joined| joined.target != target) {
        networks.push(NetworkAttachmentConfig {
            target,
            ..NetworkAttachmentConfig::default()
        });
    }
}

/// Pins the image to the digest that its registry has now, so that every node runs the same. Without an
/// answer the nodes will ask for themselves.
async fn pin_image(transport: &dyn Transport, spec: &mut ServiceSpec) {
    let image = flags::container(spec).image.clone();
    if image.contains('@') {
        return;
    }
    flags::container(spec).image = tagged(&image);
    match transport.call(Call::new(IMAGE_RESOLVE).on(&image)).await {
        Ok(answer) => {
            let digest = text(&answer, "/Descriptor/digest");
            flags::container(spec).image = format!("{}@{digest}", tagged(&image));
            let platforms = items(&answer["Platforms"]).map(|platform| Platform {
                architecture: text(platform, "/architecture").to_owned(),
                os: text(platform, "/os").to_owned(),
            });
            let platforms: Vec<Platform> = platforms.collect();
            if !platforms.is_empty() {
                flags::placement(spec).platforms = platforms;
            }
        }
        Err(error) => output::warn(&format!(
            "image {image} could not be accessed on a registry to record its digest ({error:#}). Each node will \
             access {image} independently, possibly leading to different nodes running different versions of the \
             image."
        )),
    }
}

/// With `:latest` if it has no tag.
fn tagged(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

fn show_warnings(answer: &Value) {
    for warning in items(&answer["Warnings"]).filter_map(Value::as_str) {
        output::warn(&format!("Warning: {warning}"));
    }
}
