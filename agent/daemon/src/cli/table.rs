//! Tables as Docker's client prints them.

/// Rows under a heading; each column is as wide as its widest cell and three spaces, ten at least.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        let widest = cells.chain([heading[column].chars().count()]).max();
        (widest.unwrap_or(0) + 3).max(10)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let last = cells.len().saturating_sub(1);
        let mut out = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            out.push_str(cell);
            if column < last {
                let pad = widths[column].saturating_sub(cell.chars().count());
                out.extend(std::iter::repeat_n(' ', pad));
            }
        }
        out.push('\n');
        out
    };
    let mut out = line(heading.to_vec());
    for row in rows {
        out.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_as_dockers() {
        let rows = [
            [
                "b7v4jzfadcua",
                "client",
                "replicated",
                "1/1",
                "busybox:1",
                "",
            ],
            [
                "56oheje6o3k2",
                "whoami",
                "replicated",
                "3/3",
                "whoami:1",
                "*:8000->8000/tcp",
            ],
        ];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        let text = table(&["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"], &rows);
        let wanted = "\
ID             NAME      MODE         REPLICAS   IMAGE       PORTS
b7v4jzfadcua   client    replicated   1/1        busybox:1   
56oheje6o3k2   whoami    replicated   3/3        whoami:1    *:8000->8000/tcp
";
        assert_eq!(text, wanted);
    }
}
