//! Who may do what: one function that every door calls.

use crate::{StationName, UserName};

/// What a user is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// The first user: may do everything and cannot be removed.
    Root,
    /// Operator: may manage stations and look at the cluster; also produces and consumes.
    Management,
    /// Program: produces and consumes, looks at stations.
    Client,
}

/// A caller whose credentials were checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    /// Name.
    pub user: UserName,
    /// Role.
    pub role: Role,
}

/// What a caller wants to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// Add messages.
    Produce,
    /// Read and acknowledge messages; make consumer groups.
    Consume,
    /// See a station and its settings.
    Describe,
    /// Make a station.
    CreateStation,
    /// Change settings of a station.
    UpdateStation,
    /// Delete a station and its messages.
    DeleteStation,
    /// Drain, undrain and forget nodes.
    ManageNodes,
    /// See nodes, leaders and replicas.
    DescribeCluster,
}

/// The caller may not do this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("user `{user}` may not {} {}; ask an operator for a role that may", action.verb(), station.as_deref().map_or("on this cluster".to_owned(), |s| format!("on station `{s}`")))]
pub struct Denied {
    /// Name of the user.
    pub user: String,
    /// What was wanted.
    pub action: Action,
    /// On which station, if on one.
    pub station: Option<String>,
}

impl Action {
    /// All actions, for tables and tests.
    pub const ALL: [Self; 8] = [
        Self::Produce,
        Self::Consume,
        Self::Describe,
        Self::CreateStation,
        Self::UpdateStation,
        Self::DeleteStation,
        Self::ManageNodes,
        Self::DescribeCluster,
    ];

    /// The action as words of a sentence.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Produce => "produce",
            Self::Consume => "consume",
            Self::Describe => "describe",
            Self::CreateStation => "create stations",
            Self::UpdateStation => "change stations",
            Self::DeleteStation => "delete stations",
            Self::ManageNodes => "manage nodes",
            Self::DescribeCluster => "describe the cluster",
        }
    }
}

/// Decides whether `principal` may do `action`, on `station` if the action is about one.
///
/// The only place where this is decided. What is not allowed here is denied.
pub fn authorize(principal: &Principal, action: Action, station: Option<&StationName>) -> Result<(), Denied> {
    let allowed = match principal.role {
        Role::Root | Role::Management => true,
        Role::Client => matches!(action, Action::Produce | Action::Consume | Action::Describe),
    };
    if allowed {
        return Ok(());
    }
    Err(Denied {
        user: principal.user.as_str().to_owned(),
        action,
        station: station.map(|name| name.display().to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_move_messages_and_nothing_else() {
        let client = Principal {
            user: "app".parse().unwrap(),
            role: Role::Client,
        };
        let allowed: Vec<_> = Action::ALL
            .into_iter()
            .filter(|a| authorize(&client, *a, None).is_ok())
            .collect();
        assert_eq!(allowed, [Action::Produce, Action::Consume, Action::Describe]);
    }

    #[test]
    fn root_may_do_everything() {
        let root = Principal {
            user: "root".parse().unwrap(),
            role: Role::Root,
        };
        assert!(Action::ALL.into_iter().all(|a| authorize(&root, a, None).is_ok()));
    }

    #[test]
    fn a_refusal_names_user_action_and_station() {
        let client = Principal {
            user: "app".parse().unwrap(),
            role: Role::Client,
        };
        let station = "orders".parse().unwrap();
        let denied = authorize(&client, Action::DeleteStation, Some(&station)).unwrap_err();
        assert_eq!(
            denied.to_string(),
            "user `app` may not delete stations on station `orders`; ask an operator for a role that may"
        );
    }
}
