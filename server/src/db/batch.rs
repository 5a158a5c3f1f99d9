//! Statements over many rows at once: few shapes, so that they stay prepared.

use std::fmt::Write as _;
use std::sync::LazyLock;

use sqlx::Sqlite;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;

/// How many rows one statement takes; the last part of a batch goes through the smaller ones. Wider
/// ones cost more than they save: SQLite finds the name of each parameter by a linear search.
const WIDTHS: [usize; 4] = [1, 4, 16, 64];

/// One SQL text for each width.
pub(crate) struct Shapes([String; WIDTHS.len()]);

impl Shapes {
    /// `head (…), (…), … tail` with `columns` numbered parameters in each group.
    pub(crate) fn groups(head: &str, columns: usize, tail: &str) -> Self {
        Self(WIDTHS.map(|rows| {
            let mut sql = head.to_owned();
            for row in 0..rows {
                sql.push_str(if row == 0 { " (" } else { ", (" });
                push_parameters(&mut sql, row * columns, columns);
                sql.push(')');
            }
            sql.push_str(tail);
            sql
        }))
    }

    /// `head ($1, $2, …)`.
    pub(crate) fn list(head: &str) -> Self {
        Self(WIDTHS.map(|rows| {
            let mut sql = format!("{head} (");
            push_parameters(&mut sql, 0, rows);
            sql.push(')');
            sql
        }))
    }

    /// Cuts `items` into parts, each with the SQL for exactly as many rows.
    pub(crate) fn exact<'a, T>(
        &'static self,
        items: &'a [T],
    ) -> impl Iterator<Item = (&'static str, &'a [T])> + use<'a, T> {
        let mut rest = items;
        std::iter::from_fn(move || {
            let place = WIDTHS.iter().rposition(|width| *width <= rest.len())?;
            let (part, tail) = rest.split_at(WIDTHS[place]);
            rest = tail;
            Some((self.0[place].as_str(), part))
        })
    }

    /// Cuts `items` into parts, each with SQL for at least as many rows and how often the last
    /// item must be repeated to fill it.
    pub(crate) fn padded<'a, T>(
        &'static self,
        items: &'a [T],
    ) -> impl Iterator<Item = (&'static str, &'a [T], usize)> + use<'a, T> {
        let widest = WIDTHS[WIDTHS.len() - 1];
        items.chunks(widest).map(move |part| {
            let place = WIDTHS.iter().position(|width| *width >= part.len());
            let place = place.unwrap_or(WIDTHS.len() - 1);
            (self.0[place].as_str(), part, WIDTHS[place] - part.len())
        })
    }
}

/// A set of statements that is built once.
pub(crate) type Batch = LazyLock<Shapes>;

/// The items of a part of [`Shapes::padded`], and its last one as often as it must be repeated.
pub(crate) fn repeat_last<T>(part: &[T], fill: usize) -> impl Iterator<Item = &T> {
    let last = part.last().into_iter();
    part.iter().chain(last.cycle().take(fill))
}

/// A statement of [`Shapes::list`] with its ids.
pub(crate) fn bind_ids<'q, T>(
    sql: &'static str,
    part: &'q [T],
    fill: usize,
    bytes: fn(&T) -> &[u8; 32],
) -> Query<'q, Sqlite, SqliteArguments> {
    repeat_last(part, fill).fold(sqlx::query(sql), |query, id| query.bind(&bytes(id)[..]))
}

fn push_parameters(sql: &mut String, from: usize, count: usize) {
    for n in 0..count {
        let comma = if n == 0 { "" } else { ", " };
        write!(sql, "{comma}${}", from + n + 1).expect("a String takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ROWS: Batch = Batch::new(|| Shapes::groups("INSERT INTO t VALUES", 2, " END"));
    static LIST: Batch = Batch::new(|| Shapes::list("SELECT 1 WHERE id IN"));

    #[test]
    fn every_item_is_in_one_part() {
        let items: Vec<u32> = (0..300).collect();
        let parts: Vec<usize> = ROWS.exact(&items).map(|(_, part)| part.len()).collect();
        assert_eq!(parts.iter().sum::<usize>(), 300);
        assert_eq!(parts[3..6], [64, 16, 16]);
        let (sql, _) = ROWS.exact(&items[..1]).next().unwrap();
        assert_eq!(sql, "INSERT INTO t VALUES ($1, $2) END");

        let parts: Vec<_> = LIST
            .padded(&items)
            .map(|(_, p, fill)| (p.len(), fill))
            .collect();
        assert_eq!(parts[3..], [(64, 0), (44, 20)]);
        let (sql, _, fill) = LIST.padded(&items[..1]).next().unwrap();
        assert_eq!((sql, fill), ("SELECT 1 WHERE id IN ($1)", 0));
        assert_eq!(ROWS.exact::<u32>(&[]).count(), 0);
    }
}
