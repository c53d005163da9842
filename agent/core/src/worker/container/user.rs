//! Who a process in a container is: names from the image's own `/etc/passwd` and `/etc/group`, as Docker looks them up.

/// Numbers and home of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User number.
    pub uid: u32,
    /// Primary group number.
    pub gid: u32,
    /// Further groups, ascending.
    pub groups: Vec<u32>,
    /// Home directory; `/` when the image does not say.
    pub home: String,
}

/// Why a user cannot be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The name is not in the image's `/etc/passwd`.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// The name is not in the image's `/etc/group`.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
}

/// An entry of `/etc/passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Finds `user`, given as `""`, `name`, `uid`, `name:group` or `uid:gid`, and the groups that `extra` names. A name wins
/// over a number; a number needs no entry. With a group given the user's further groups do not count (as runc has it).
///
/// # Errors
/// A name that the image does not know.
pub fn resolve(user: &str, extra: &[String], passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, explicit_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let account = accounts(passwd)
        .find(|account| account.name == user)
        .or_else(|| accounts(passwd).find(|account| Some(account.uid) == number));
    let uid = match (&account, number) {
        (Some(account), _) => account.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let gid = match explicit_group {
        Some(name) => group_number(name, group)?,
        None => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut groups = Vec::new();
    if let (Some(account), None) = (&account, explicit_group) {
        groups.extend(memberships(account.name, group));
    }
    for name in extra {
        groups.push(group_number(name, group)?);
    }
    groups.sort_unstable();
    groups.dedup();
    let home = account.map(|account| account.home).unwrap_or_default();
    Ok(User {
        uid,
        gid,
        groups,
        home: if home.is_empty() { "/" } else { home }.to_owned(),
    })
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Account {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// Name, number and members of each entry of `/etc/group`.
fn entries(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn group_number(name: &str, group: &str) -> Result<u32, UserError> {
    entries(group)
        .find(|(entry, _, _)| *entry == name)
        .map(|(_, gid, _)| gid)
        .or_else(|| name.parse().ok())
        .ok_or_else(|| UserError::NoGroup(name.to_owned()))
}

fn memberships<'a>(user: &'a str, group: &'a str) -> impl Iterator<Item = u32> + 'a {
    entries(group)
        .filter(move |(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbroken\nwww:x:33:34::/var/www:/bin/false\nnohome:x:40:41\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nadm:x:4:www,other\nssl:x:5:other,www\n";

    fn user(text: &str) -> (u32, u32, Vec<u32>, String) {
        let user = resolve(text, &[], PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        assert_eq!(user(""), (0, 0, vec![], "/root".into()));
        assert_eq!(user("www"), (33, 34, vec![4, 5], "/var/www".into()));
        assert_eq!(user("33"), (33, 34, vec![4, 5], "/var/www".into()));
        assert_eq!(user("www:root"), (33, 0, vec![], "/var/www".into()));
        assert_eq!(user("www:7"), (33, 7, vec![], "/var/www".into()));
        assert_eq!(user("1000"), (1000, 0, vec![], "/".into()));
        assert_eq!(user("1000:4"), (1000, 4, vec![], "/".into()));
        assert_eq!(user("nohome"), (40, 41, vec![], "/".into()));
    }

    #[test]
    fn unknown_names_are_named() {
        let error = resolve("nobody", &[], PASSWD, GROUP).unwrap_err();
        assert_eq!(error, UserError::NoUser("nobody".into()));
        let error = resolve("www:nogroup", &[], PASSWD, GROUP).unwrap_err();
        assert_eq!(error, UserError::NoGroup("nogroup".into()));
        let extra = ["adm".to_owned(), "99".to_owned()];
        let user = resolve("0", &extra, PASSWD, GROUP).unwrap();
        assert_eq!(user.groups, [4, 99]);
    }

    proptest! {
        #[test]
        fn files_of_a_stranger_do_no_harm(user in "[a-z0-9:]{0,8}", passwd in "[a-z0-9:,\n]{0,200}", group in "[a-z0-9:,\n]{0,200}") {
            let _ = resolve(&user, &[], &passwd, &group);
        }
    }
}
