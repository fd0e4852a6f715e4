//! What is said where something is wrong, and with which exit code: every line of tests/words/*.trycmd is typed at the real
//! program, behind it a real coordinator and a played engine. `TRYCMD=overwrite` writes what is said now; read it as an
//! operator would before it is kept.

use std::path::Path;

use crate::world::world;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_word_is_answered_with_what_is_right() {
    let world = world().await;
    world.ready().await;
    let host = format!("unix://{}", world.engine.socket.display());
    let words = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/words");
    let files = world.dir.path().join("files");
    std::fs::create_dir_all(&files).expect("made");
    let typed = tokio::task::spawn_blocking(move || {
        let cases = trycmd::TestCases::new();
        cases
            .register_bin("swarmguard", Path::new(env!("CARGO_BIN_EXE_swarmguard")))
            .env("DOCKER_HOST", host)
            .env("DOCKER_CONFIG", "/nonexistent")
            .env("DOCKER_CONTEXT", "")
            .env("USER", "anna")
            .env("NO_COLOR", "1")
            .case(words.join("*.trycmd"));
        cases.run();
    });
    typed.await.expect("all as written");
}
