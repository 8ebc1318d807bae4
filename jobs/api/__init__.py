"""HTTP: every route, one file for each OpenAI resource."""
