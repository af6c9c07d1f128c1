"""Optional parts, each behind an extra of the package: language models, and the Model Context Protocol."""
