//! The parts in the order they are started and stopped.

use super::bootstrap::{self, Owner};
use super::child::{Plane, Spec};
use super::database::Database;
use super::engine::{Choice, Engine};
use super::layout::Running;
use super::report::Ready;
use super::served;
use super::settings::{self, CONTROL, EDGE, EDGE_NAME, NODE, NODE_NAME, Plan};
use crate::admin;
use crate::pki::{Authority, Files, Subject};
use crate::private;
use anyhow::Context as _;
use std::time::{Duration, Instant};
use tracing::info;
use turnpike_config::link::Role;

/// How long a plane may take to be ready. The control plane migrates its database in this time, the node loads a model.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// How long a plane may take to stop: its own drain, and a little more.
const STOP_PATIENCE: Duration = Duration::from_secs(settings::DRAIN_SECONDS + 5);
/// Longest that one question about readiness waits.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// The certificates are made anew at every start.
const CERTIFICATE_DAYS: u32 = 365;

/// What runs.
#[derive(Default)]
pub(super) struct Stack {
    database: Option<Database>,
    control: Option<Plane>,
    node: Option<Plane>,
    edge: Option<Plane>,
}

struct Certificates {
    control: Files,
    edge: Files,
    node: Files,
}

impl Stack {
    /// Starts everything and waits until a request would be answered. What was started before a failure stays in here,
    /// to be stopped.
    pub(super) async fn start(&mut self, plan: &Plan<'_>, choice: Choice) -> anyhow::Result<Ready> {
        let began = Instant::now();
        let certificates = certificates(plan)?;
        let admin_token = admin_token(plan)?;
        let http = reqwest::Client::builder().no_proxy().timeout(PROBE_TIMEOUT).build().context("HTTP client")?;

        let running = Running {
            base_url: plan.ports.base_url(),
            admin_url: plan.ports.admin_url(),
            edge_url: format!("http://{}", plan.ports.edge_metrics),
            admin_token_file: plan.dir.admin_token_file(),
            pid: std::process::id(),
            last_listeners: vec![plan.ports.edge_metrics, plan.ports.node_metrics],
        };
        running.write(plan.dir)?;

        let admin = admin::Client::new(&running.admin_url, &admin_token)?;
        let engine = tokio::task::spawn_blocking(move || Engine::settle(choice));
        let engine = async { engine.await.context("choosing an engine")? };
        // A download takes its time; the database does not wait for it.
        let (engine, ()) = tokio::try_join!(engine, self.start_control(plan, &certificates.control, &http))?;
        let owner = bootstrap::run(&admin, plan.dir, engine).await.context("setting up the first organization")?;

        plan.write_node(&certificates.node, engine)?;
        plan.write_edge(&certificates.edge)?;
        let node = self.node.insert(Plane::start(Spec {
            environment: engine.environment(),
            ..spec(plan, NODE, plan.ports.node_metrics)
        }));
        let edge = self.edge.insert(Plane::start(spec(plan, EDGE, plan.ports.edge_metrics)));
        tokio::try_join!(node.ready(&http, READY_PATIENCE), edge.ready(&http, READY_PATIENCE))?;
        let ready = ready(plan, engine, &owner, admin_token);
        served::wait(&admin, &http, &ready.base_url, &owner.api_key, engine).await?;

        info!(seconds = began.elapsed().as_secs_f32(), "ready");
        Ok(ready)
    }

    async fn start_control(&mut self, plan: &Plan<'_>, tls: &Files, http: &reqwest::Client) -> anyhow::Result<()> {
        let directory = plan.dir.postgres();
        let database = tokio::task::spawn_blocking(move || Database::start(&directory));
        let database = self.database.insert(database.await.context("starting PostgreSQL")??);
        plan.write_control(tls, &database.url)?;
        let control = self.control.insert(Plane::start(spec(plan, CONTROL, plan.ports.admin)));
        control.ready(http, READY_PATIENCE).await
    }

    /// Stops everything: first who takes requests, last who keeps the data.
    pub(super) async fn stop(self) {
        for plane in [self.edge, self.node, self.control].into_iter().flatten() {
            plane.stop().await;
        }
        if let Some(database) = self.database {
            // It logs whatever goes wrong.
            let _ = tokio::task::spawn_blocking(move || database.stop()).await;
        }
    }
}

fn spec(plan: &Plan<'_>, plane: &'static str, health: std::net::SocketAddr) -> Spec {
    Spec {
        program: plan.program.clone(),
        plane,
        settings: plan.dir.settings(plane),
        log: plan.dir.logs().join(format!("{plane}.log")),
        ready_url: format!("http://{health}/readyz"),
        patience: STOP_PATIENCE,
        environment: &[],
    }
}

fn certificates(plan: &Plan<'_>) -> anyhow::Result<Certificates> {
    let authority = Authority::open_or_create(&plan.dir.certificates()).context("the certificate authority")?;
    let issue = |role, name| {
        let subject = Subject { role, name, hosts: &[], days: CERTIFICATE_DAYS };
        authority.issue(&subject).with_context(|| format!("the certificate of {name}"))
    };
    Ok(Certificates {
        control: issue(Role::Control, "control")?,
        edge: issue(Role::Edge, EDGE_NAME)?,
        node: issue(Role::Node, NODE_NAME)?,
    })
}

fn admin_token(plan: &Plan<'_>) -> anyhow::Result<String> {
    let file = plan.dir.admin_token_file();
    if let Some(token) = private::read(&file)?.filter(|token| !token.is_empty()) {
        return Ok(token);
    }
    let token = private::secret("tpa-").context("making an admin token")?;
    private::write(&file, format!("{token}\n"))?;
    Ok(token)
}

fn ready(plan: &Plan<'_>, engine: Engine, owner: &Owner, admin_token: String) -> Ready {
    let admin_url = plan.ports.admin_url();
    Ready {
        base_url: plan.ports.base_url(),
        api_key: owner.api_key.clone(),
        key_is_new: owner.key_is_new,
        api_key_file: plan.dir.api_key_file(),
        admin_token,
        admin_token_file: plan.dir.admin_token_file(),
        // The console's own pages come later; until then the admin API's description answers here.
        console_url: format!("{admin_url}/openapi.json"),
        admin_url,
        model: engine.models()[0].id,
        data_dir: plan.dir.root().to_owned(),
    }
}
