//! Every way to an engine: contexts, TLS with certificates, and ssh through a real sshd.

use std::{fs, net::SocketAddr, path::Path, process::Stdio, sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use swarmguard_runtime::identity::{Identity, Source, Unit, issue::Authority};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;

use crate::world::{World, run, world};

/// Files of an engine's certificate as docker has them, in `dir`.
fn certificates(authority: &Authority, dir: &Path) {
    fs::create_dir_all(dir).expect("made");
    authority.issue("127.0.0.1", Unit::Manager, dir).expect("issued");
}

/// The played engine over TLS, for those with a certificate of the same authority only.
async fn tls_engine(world: &World, dir: &Path) -> SocketAddr {
    let mut config =
        Identity::load(&Source::Files(dir.into())).expect("loads").server_config().expect("usable");
    config.alpn_protocols.clear();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let (address, socket) = (listener.local_addr().expect("bound"), world.engine.socket.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, socket) = (acceptor.clone(), socket.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut engine = UnixStream::connect(socket).await.expect("the engine");
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut engine).await;
            });
        }
    });
    address
}

/// Writes a docker context.
fn context(config: &Path, name: &str, host: &str) -> std::path::PathBuf {
    let digest = format!("{:x}", Sha256::digest(name.as_bytes()));
    let meta = config.join("contexts/meta").join(&digest);
    fs::create_dir_all(&meta).expect("made");
    let text = format!(
        r#"{{"Name":"{name}","Metadata":{{}},"Endpoints":{{"docker":{{"Host":"{host}","SkipTLSVerify":false}}}}}}"#
    );
    fs::write(meta.join("meta.json"), text).expect("written");
    config.join("contexts/tls").join(digest).join("docker")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contexts_lead_to_engines_with_and_without_tls() {
    let world = world().await;
    world.ready().await;
    let authority = Authority::create("engines").expect("made");
    let (server, config) = (world.dir.path().join("engine"), world.dir.path().join("docker"));
    certificates(&authority, &server);
    let engine = tls_engine(&world, &server).await;
    let tls = context(&config, "prod", &format!("tcp://{engine}"));
    certificates(&authority, &tls);
    context(&config, "near", &format!("unix://{}", world.engine.socket.display()));
    let naked = context(&config, "naked", &format!("tcp://{engine}"));
    assert!(!naked.exists());
    let strange = context(&config, "strange", &format!("tcp://{engine}"));
    certificates(&Authority::create("others").expect("made"), &strange);
    fs::write(config.join("config.json"), r#"{"currentContext":"prod"}"#).expect("written");
    let config = config.display().to_string();
    let ask = async |args: &[&str], env: &[(&str, &str)]| {
        let env = [&[("DOCKER_CONFIG", config.as_str())], env].concat();
        let said = run(&[args, &["services", "-q"]].concat(), &env).await;
        (said.code, said.out + &said.err)
    };
    let right = (0, "shop_web\n".to_owned());
    assert_eq!(ask(&[], &[]).await, right, "docker context use");
    assert_eq!(ask(&["--context", "near"], &[]).await, right);
    assert_eq!(ask(&[], &[("DOCKER_CONTEXT", "near")]).await, right);
    let tls_by_hand = [
        ("DOCKER_HOST", &*format!("tcp://{engine}")),
        ("DOCKER_TLS_VERIFY", "1"),
        ("DOCKER_CERT_PATH", &*tls.display().to_string()),
    ];
    assert_eq!(ask(&[], &tls_by_hand).await, right);
    let (code, words) = ask(&["--context", "naked"], &[]).await;
    assert!(code == 3 && words.contains("context naked"), "{code} {words}");
    let (code, words) = ask(&["--context", "strange"], &[]).await;
    assert!(code == 3 && words.contains("TLS") && words.contains("context strange"), "{code} {words}");
    fs::remove_file(tls.join("key.pem")).expect("removed");
    let (code, words) = ask(&["--context", "prod"], &[]).await;
    assert!(code == 2 && words.contains("key.pem"), "{code} {words}");
}

/// An sshd of our own on a loopback port, with docker's `dial-stdio` played on the other side.
struct Sshd {
    child: tokio::process::Child,
    port: u16,
    log: std::path::PathBuf,
    path: String,
}

impl Sshd {
    /// `None` where this machine has no sshd (Debian: `openssh-server`).
    async fn start(dir: &Path, socket: &Path) -> Option<Self> {
        let sshd = Path::new("/usr/sbin/sshd");
        if !sshd.exists() {
            return None;
        }
        fs::create_dir_all(dir.join("bin")).expect("made");
        for (name, comment) in [("host", "host"), ("user", "user")] {
            let key = dir.join(name);
            let made = std::process::Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
                .arg(&key)
                .status();
            assert!(made.expect("ssh-keygen").success());
        }
        let port = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound").port();
        let at = dir.display();
        // What a login runs: docker's own command line would join its input and output to the engine's socket.
        script(
            &dir.join("bin/docker"),
            &format!(
                "#!/usr/bin/python3\nimport os, socket, sys, threading\nassert sys.argv[1:] == ['system', 'dial-stdio'], sys.argv\n\
                 s = socket.socket(socket.AF_UNIX); s.connect('{}')\ndef up():\n  while b := os.read(0, 65536): s.sendall(b)\n\
                 \x20 s.shutdown(socket.SHUT_WR)\nthreading.Thread(target=up, daemon=True).start()\n\
                 while b := s.recv(65536): os.write(1, b)\n",
                socket.display()
            ),
        );
        script(&dir.join("bin/ssh"), &format!("#!/bin/sh\nexec /usr/bin/ssh -F {at}/client \"$@\"\n"));
        let known = fs::read_to_string(dir.join("host.pub")).expect("a key");
        fs::write(dir.join("known"), format!("[127.0.0.1]:{port} {known}")).expect("written");
        let client = format!(
            "IdentityFile {at}/user\nUserKnownHostsFile {at}/known\nBatchMode yes\nIdentitiesOnly yes\n"
        );
        fs::write(dir.join("client"), client).expect("written");
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nLogLevel VERBOSE\n\
             SetEnv PATH={at}/bin:/usr/bin:/bin\n"
        );
        fs::write(dir.join("config"), config).expect("written");
        fs::create_dir_all("/run/sshd").expect("made");
        let log = dir.join("log");
        let child = tokio::process::Command::new(sshd)
            .args(["-D", "-E"])
            .arg(&log)
            .arg("-f")
            .arg(dir.join("config"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("sshd starts");
        for _ in 0..100 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(Self { child, port, log, path: format!("{at}/bin:/usr/bin:/bin") })
    }

    fn logins(&self) -> usize {
        fs::read_to_string(&self.log).unwrap_or_default().matches("Accepted publickey").count()
    }
}

fn script(file: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(file, text).expect("written");
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ssh_leads_to_an_engine_with_one_login_for_a_whole_run() {
    let world = world().await;
    world.ready().await;
    let Some(mut sshd) = Sshd::start(&world.dir.path().join("ssh"), &world.engine.socket).await else {
        println!("skipped: no sshd here (openssh-server)");
        return;
    };
    let host = format!("ssh://root@127.0.0.1:{}", sshd.port);
    let env = [("DOCKER_HOST", host.as_str()), ("PATH", sshd.path.as_str()), ("HOME", "/root")];
    let services = run(&["services", "-q"], &env).await;
    assert_eq!((services.code, services.out.as_str()), (0, "shop_web\n"), "{}", services.err);
    assert_eq!(sshd.logins(), 1, "the engine was asked several times, over one login");
    let paused = run(&["pause", "shop_web"], &env).await;
    assert_eq!(paused.code, 0, "{}{}", paused.out, paused.err);
    assert_eq!(sshd.logins(), 2);
    sshd.child.kill().await.expect("ended");
    let gone = run(&["status"], &env).await;
    assert!(
        gone.code == 3 && gone.err.contains(&host) && gone.err.contains("by hand"),
        "{} {}",
        gone.code,
        gone.err
    );
}
