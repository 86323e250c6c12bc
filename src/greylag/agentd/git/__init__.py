"""git in the environment: what its workspace starts from, its status, commits and pushes."""
