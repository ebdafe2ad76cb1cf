//! Sends requests through the stages up to the node, so that their instructions can be counted: see `./test cost`.

use std::hint::black_box;
use turnpike_dataplane::bench::HotPath;

/// Requests that are counted, as `./test cost` knows; others warm up what is made at first use.
const COUNTED: u32 = 1_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A share that is empty waits for its grant, with a timer.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let _inside = runtime.enter();
    let path = HotPath::new(1 << 10).ok_or("there is no such deployment")?;
    for _ in 0..100 {
        if !path.request() {
            return Err("a request was refused".into());
        }
    }
    counted(&path);
    Ok(())
}

/// The function whose instructions are counted.
#[inline(never)]
fn counted(path: &HotPath) {
    for _ in 0..COUNTED {
        black_box(black_box(path).request());
    }
}
