//! A PostgreSQL to try something on: prints its address, and ends with its input or Ctrl-C.

use dumont_temp_postgres::{Cluster, Error};

fn main() -> Result<(), Error> {
    let cluster = Cluster::start()?;
    println!("{}", cluster.create_database("dumont")?);
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    Ok(())
}
