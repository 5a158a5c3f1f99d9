//! Founding, joining, and who stays out.

use anyhow::{Context, Result, ensure};
use e2e::World;

#[test]
fn founding_shows_the_recovery_words_once_and_happens_once() -> Result<()> {
    let world = World::new()?;
    let invite = world.home.invite()?;
    let a = world.stranger("a")?;
    let joined = a.json(&["join", &invite, "--name", "a"])?;
    let text = joined.to_string();
    ensure!(text.contains("recovery_words"), "{joined}");
    ensure!(
        world.home.invite().is_err(),
        "a founded home gives no founding invite"
    );

    let b = world.stranger("b")?;
    let refused = b.imgctl(&["join", &invite, "--name", "b", "--json"])?;
    ensure!(refused.code == Some(2), "{refused}");
    ensure!(
        !refused.stdout.contains("recovery_words"),
        "nobody writes down words that are void: {refused}"
    );
    // Whoever was interrupted types the same line again.
    let again = a.json(&["join", &invite, "--name", "a"])?;
    ensure!(
        again["already"] == true && again["device"] == joined[1]["device"],
        "{again}"
    );
    Ok(())
}

#[test]
fn two_devices_of_a_home_do_not_have_one_name() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("laptop")?;
    let invite = || -> Result<String> {
        let invite = a.json(&["device", "invite"])?;
        Ok(invite["invite"].as_str().context("no invite")?.to_owned())
    };
    let b = world.stranger("b")?;
    let line = invite()?;
    let refused = b.fails(2, &["join", &line, "--name", "laptop"])?;
    ensure!(refused["error"] == "name_taken", "{refused}");
    // The invite is as good as before.
    let joined = b.json(&["join", &line, "--name", "tablet"])?;
    ensure!(joined["name"] == "tablet", "{joined}");
    let again = b.json(&["join", &line, "--name", "tablet"])?;
    ensure!(again["already"] == true, "{again}");
    Ok(())
}

#[test]
fn members_are_listed_and_only_admins_invite() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    let b = world.joined("b", &a)?;
    let devices = b.json(&["device", "list"])?;
    let names: Vec<_> = devices
        .as_array()
        .context("two devices")?
        .iter()
        .filter_map(|device| device["name"].as_str())
        .collect();
    ensure!(names == ["a", "b"], "{devices}");
    b.fails(8, &["device", "invite"])?;
    Ok(())
}

#[test]
fn an_invite_works_once_and_a_wrong_one_never() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    let invite = a.json(&["device", "invite"])?;
    let line = invite["invite"].as_str().context("no invite")?;
    let b = world.stranger("b")?;
    b.json(&["join", line, "--name", "b"])?;
    let c = world.stranger("c")?;
    let used = c.imgctl(&["join", line, "--name", "c", "--json"])?;
    ensure!(matches!(used.code, Some(2 | 8)), "{used}");

    let mut typo = line.to_owned();
    let last = if typo.ends_with('A') { 'B' } else { 'A' };
    typo.pop();
    typo.push(last);
    c.fails(2, &["join", &typo, "--name", "c"])?;
    c.fails(2, &["join", "nonsense", "--name", "c"])?;
    c.fails(2, &["ls"])?;
    Ok(())
}

#[test]
fn the_recovery_words_bring_a_device_in_when_all_others_are_lost() -> Result<()> {
    let world = World::new()?;
    let a = world.stranger("a")?;
    let outcome = a.imgctl(&["join", &world.home.invite()?, "--name", "a", "--json"])?;
    let words = outcome
        .stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|value| {
            Some((
                value["recovery_words"].as_str()?.to_owned(),
                value["recover"].as_str()?.to_owned(),
            ))
        })
        .with_context(|| format!("no recovery words in {outcome}"))?;
    a.json(&["create", "precious"])?;
    let (words, line) = words;
    let mut recover: Vec<_> = line.split(' ').skip(1).collect();
    recover.extend(["--name", "b", "--json"]);
    let b = world.stranger("b")?;
    let recovered = b.imgctl_reading(&words, &recover)?;
    ensure!(recovered.ok(), "{recovered}");
    ensure!(b.json(&["ls"])?["name"] == "precious");
    Ok(())
}
