"""Ways to propose a tree. A new one is a file here with a `proposer.Proposer`; nothing else of decoding changes."""
