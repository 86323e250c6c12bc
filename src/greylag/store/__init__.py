"""Where records are kept: adapters of ``greylag.ports`` and of the user directory."""
