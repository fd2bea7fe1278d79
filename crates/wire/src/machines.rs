//! `/providers/ssh/machines`: machines of the user's own.

use dumont_core::id::WorkspaceName;
use dumont_core::own_machine::OwnMachine;
use serde::{Deserialize, Serialize};

/// A machine and how it stands.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnMachineShown {
    pub spec: OwnMachine,
    pub source: MachineSource,
    pub state: OwnMachineState,
    /// What is in the way, and what to do about it.
    pub message: Option<String>,
    pub leases: Vec<LeaseShown>,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineSource {
    /// The file that `SSH_INVENTORY` names.
    File,
    Api,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnMachineState {
    /// A workspace may come.
    Free,
    /// Every place is taken.
    Leased,
    /// It was given back and could not be cleaned up yet; offered to nobody.
    Cleaning,
    /// It does not answer.
    Unreachable,
    /// It answers, but does not let us in, or shows another host key.
    Refused,
}

/// Who lives, or lived, on it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseShown {
    pub instance_id: String,
    /// None where another installation of dumont leased it.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub workspace: Option<WorkspaceName>,
    /// Given back, and not cleaned up yet.
    pub cleaning: bool,
}

/// `DELETE /providers/ssh/machines/{name}?…`
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveMachine {
    /// It will not come back: leases on it are given up, and nothing there is cleaned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
}
