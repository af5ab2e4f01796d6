"""The engine's WebUI on a server: gunicorn behind nginx, people's accounts, and each one's calculations theirs."""
