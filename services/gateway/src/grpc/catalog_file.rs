//! Form of the catalog's copy on disk: the messages in which the store lists records.

use prost::Message as _;
use ptah_proto::metadata::v1 as pb;
use ptah_rpc::records::Record;

use crate::catalog::file::{CatalogCodec, CatalogCopy};

/// The form.
pub const CODEC: CatalogCodec = CatalogCodec { encode, decode };

fn encode(copy: &CatalogCopy) -> Vec<u8> {
    let listing = pb::ListRecordsResponse {
        records: copy.records.iter().map(pb::Record::from).collect(),
        next_page_token: String::new(),
        revision: copy.revision,
        incarnation: copy.incarnation,
    };
    listing.encode_to_vec()
}

fn decode(bytes: &[u8]) -> Result<CatalogCopy, String> {
    let listing = pb::ListRecordsResponse::decode(bytes).map_err(|error| error.to_string())?;
    let records = listing.records.into_iter().map(Record::try_from);
    Ok(CatalogCopy {
        records: records
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?,
        revision: listing.revision,
        incarnation: listing.incarnation,
    })
}
