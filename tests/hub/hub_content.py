"""What the Hub of the tests holds."""

from hub_server import HubServer


def content(hub: HubServer, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
    """All files of a repository on the server, without .gitattributes."""
    repo = hub.hub.repos[repo_type, repo_id]
    tree = hub.hub.resolve(repo, revision).tree
    return {path: hub.hub.read(entry) for path, entry in tree.items() if path != ".gitattributes"}


def commits(hub: HubServer, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[str]:
    """Titles of the commits, newest first."""
    repo = hub.hub.repos[repo_type, repo_id]
    return [commit.title for commit in hub.hub.history(repo, hub.hub.resolve(repo, revision))]
