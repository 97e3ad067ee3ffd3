//! Entries of the list that `/v1/models` returns.

use crate::{ApiCall, VllmError};
use serde::Deserialize;

/// One entry of `/v1/models`: a base model or a loaded adapter.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModelCard {
    /// Name of the model in requests.
    pub id: String,
    /// Path or hub name that the model was loaded from, as it was sent to vLLM.
    #[serde(default)]
    pub root: Option<String>,
    /// Base model of an adapter; `None` if this is a base model.
    #[serde(default)]
    pub parent: Option<String>,
}

impl ModelCard {
    /// Returns whether this is a base model, which cannot be unloaded.
    pub fn is_base_model(&self) -> bool {
        self.parent.is_none()
    }

    /// Parses the response of `/v1/models`.
    pub(crate) fn parse_list(body: &[u8]) -> Result<Vec<Self>, VllmError> {
        #[derive(Deserialize)]
        struct ModelList {
            data: Vec<ModelCard>,
        }
        serde_json::from_slice::<ModelList>(body).map(|list| list.data).map_err(|error| VllmError::UnexpectedResponse {
            call: ApiCall::Models.to_string(),
            status: 200,
            detail: format!("not a list of models: {error}"),
        })
    }
}
