"""Visual prompts: types, maps and coordinates, and reading them from users and files."""
