//! What `/v1/models` lists.

use crate::{ApiCall, VllmError};
use serde::Deserialize;

/// One entry of `/v1/models`: a base model, or an adapter that is registered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModelCard {
    /// The name that requests use.
    pub id: String,
    /// The path or hub name that it was loaded from, as it was given.
    #[serde(default)]
    pub root: Option<String>,
    /// The base model of an adapter; none for a base model.
    #[serde(default)]
    pub parent: Option<String>,
}

impl ModelCard {
    /// Whether this is a base model, which nothing may unload.
    pub fn is_base_model(&self) -> bool {
        self.parent.is_none()
    }

    /// Reads an answer of `/v1/models`.
    pub(crate) fn parse_list(body: &[u8]) -> Result<Vec<Self>, VllmError> {
        #[derive(Deserialize)]
        struct ModelList {
            data: Vec<ModelCard>,
        }
        serde_json::from_slice::<ModelList>(body).map(|list| list.data).map_err(|error| VllmError::UnexpectedResponse {
            call: ApiCall::Models.to_string(),
            status: 200,
            detail: format!("no list of models: {error}"),
        })
    }
}
