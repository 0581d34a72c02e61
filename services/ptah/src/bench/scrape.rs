//! Counters of the servers, from their metrics pages.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::failure::Failure;

/// Counters of fsyncs on a storage node's page: of the write-ahead log, and of segments and checkpoints.
pub(super) const FSYNC_COUNTERS: [&str; 2] = ["ptah_raft_wal_syncs_total", "ptah_raft_file_syncs_total"];
/// Longest wait for a page.
const DEADLINE: Duration = Duration::from_secs(5);
/// A page is longer than this only by mistake.
const MAX_PAGE_BYTES: u64 = 16 << 20;

/// Sums counters over all their labels and all pages.
pub(super) async fn sum(urls: &[String], counters: &[String]) -> Result<f64, Failure> {
    let mut total = 0.0;
    for url in urls {
        let page = fetch(url).await?;
        for counter in counters {
            total += sum_of(&page, counter).ok_or_else(|| {
                Failure::usage(format!(
                    "metrics page `{url}` has no counter `{counter}`; name others with --fsync-counters"
                ))
            })?;
        }
    }
    Ok(total)
}

async fn fetch(url: &str) -> Result<String, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::usage(format!("read metrics page `{url}`: {why}"));
    match tokio::time::timeout(DEADLINE, get(url)).await {
        Ok(page) => page.map_err(|error| failed(&error)),
        Err(_) => Err(failed(&format!("no answer within {} s", DEADLINE.as_secs()))),
    }
}

/// HTTP/1.0, so that the server answers in one piece and closes the connection.
async fn get(url: &str) -> std::io::Result<String> {
    let invalid = |why: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_owned());
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = match rest.split_once('/') {
        Some((host, path)) => (host, format!("/{path}")),
        None => (rest, "/metrics".to_owned()),
    };
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: text/plain\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_PAGE_BYTES).read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer).map_err(|_| invalid("the page is not UTF-8"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| invalid("no HTTP answer"))?;
    let status = head.split_whitespace().nth(1).unwrap_or("");
    if status != "200" {
        return Err(invalid(&format!("HTTP status {status}")));
    }
    Ok(body.to_owned())
}

/// Sum of a counter's samples on a page of Prometheus text; `None` when it has none.
fn sum_of(page: &str, counter: &str) -> Option<f64> {
    let mut total = None;
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap_or("");
        if name != counter {
            continue;
        }
        // Labels may hold blanks; the value is the first word behind them.
        let behind = match line.rsplit_once('}') {
            Some((_, behind)) => behind,
            None => &line[name.len()..],
        };
        let value: f64 = behind.split_whitespace().next()?.parse().ok()?;
        total = Some(total.unwrap_or(0.0) + value);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP a_total x\n# TYPE a_total counter\na_total{node=\"1\",why=\"a b}\"} 3\n\
                        a_total{node=\"2\"} 4.5 1700000000\na_total_more 9\nb_total 7\n# EOF\n";

    #[test]
    fn a_counter_is_summed_over_its_labels() {
        assert_eq!(sum_of(PAGE, "a_total"), Some(7.5));
        assert_eq!(sum_of(PAGE, "b_total"), Some(7.0));
        assert_eq!(sum_of(PAGE, "c_total"), None);
    }

    #[tokio::test]
    async fn a_page_is_fetched_and_a_missing_counter_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap());
        let server = async {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await.unwrap();
                let answer = format!("HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\n{PAGE}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let urls = [url];
        let client = async {
            assert_eq!(
                sum(&urls, &["a_total".to_owned(), "b_total".to_owned()])
                    .await
                    .unwrap(),
                14.5
            );
            let failure = sum(&urls, &["nothing_total".to_owned()]).await.unwrap_err();
            assert!(failure.message().unwrap().contains("--fsync-counters"));
        };
        tokio::join!(server, client);
    }
}
