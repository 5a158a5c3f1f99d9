//! The life of a generation, from the first write to the commit that contains it.

/// Where a generation stands. `Root` is what its seal yields, `Commit` what names it at home.
///
/// ```text
/// Open ─close→ Closed ─seal(root)→ Sealed ─stream→ Streamed ─commit(id)→ Committed
/// ```
///
/// There is no way back and no short cut: what is not sealed cannot be streamed, and what the home
/// does not hold completely cannot be committed. A generation that closed by itself is no
/// checkpoint: it stays sealed until a later generation's commit contains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationStage<Root, Commit> {
    /// The top of the stack; the only one that changes.
    Open,
    /// Immutable, in memory and in its arena.
    Closed,
    /// Blocks and index nodes of its root are durable on this device.
    Sealed {
        /// The root with this generation applied.
        root: Root,
    },
    /// The home holds every object of the root.
    Streamed {
        /// The root with this generation applied.
        root: Root,
    },
    /// A commit at home contains it.
    Committed {
        /// The root with this generation applied.
        root: Root,
        /// The commit.
        commit: Commit,
    },
}

/// What happens to a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<Root, Commit> {
    /// A new generation was pushed on top.
    Close,
    /// Its blocks and nodes are durable_local under this root.
    Seal(Root),
    /// The home holds its root completely.
    Stream,
    /// The home acknowledged a commit of its root.
    Commit(Commit),
}

/// Says that a step is not the one that follows a generation's stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a generation cannot {step} while it is {stage}")]
pub struct Forbidden {
    /// The stage it is in.
    pub stage: &'static str,
    /// What was tried.
    pub step: &'static str,
}

impl<Root, Commit> GenerationStage<Root, Commit> {
    /// Goes on to the next stage.
    ///
    /// # Errors
    /// The step does not follow this stage.
    pub fn step(self, step: Step<Root, Commit>) -> Result<Self, Forbidden> {
        match (self, step) {
            (Self::Open, Step::Close) => Ok(Self::Closed),
            (Self::Closed, Step::Seal(root)) => Ok(Self::Sealed { root }),
            (Self::Sealed { root }, Step::Stream) => Ok(Self::Streamed { root }),
            (Self::Streamed { root }, Step::Commit(commit)) => Ok(Self::Committed { root, commit }),
            (stage, step) => Err(Forbidden {
                stage: stage.name(),
                step: step.name(),
            }),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Sealed { .. } => "sealed",
            Self::Streamed { .. } => "streamed",
            Self::Committed { .. } => "committed",
        }
    }
}

impl<Root, Commit> Step<Root, Commit> {
    fn name(&self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::Seal(_) => "be sealed",
            Self::Stream => "be streamed",
            Self::Commit(_) => "be committed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Stage = GenerationStage<u8, char>;

    const STAGES: [Stage; 5] = [
        Stage::Open,
        Stage::Closed,
        Stage::Sealed { root: 7 },
        Stage::Streamed { root: 7 },
        Stage::Committed {
            root: 7,
            commit: 'c',
        },
    ];
    const STEPS: [Step<u8, char>; 4] =
        [Step::Close, Step::Seal(7), Step::Stream, Step::Commit('c')];

    #[test]
    fn the_only_way_leads_from_the_first_write_to_the_commit() {
        for (number, stage) in STAGES.into_iter().enumerate() {
            for (which, step) in STEPS.into_iter().enumerate() {
                let next = stage.step(step);
                if number == which {
                    assert_eq!(next, Ok(STAGES[number + 1]));
                } else {
                    let forbidden = next.expect_err("an edge that the diagram does not have");
                    assert_eq!(forbidden.stage, stage.name());
                    assert_eq!(forbidden.step, step.name());
                }
            }
        }
    }
}
