"""HTTP: routes, formats, the front process and its engine process."""
