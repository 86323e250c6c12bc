"""Where records are kept: adapters of ``greylag.ports.store`` and of the user directory."""
