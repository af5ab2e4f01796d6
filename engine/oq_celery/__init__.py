"""The Celery mode of the OpenQuake Engine 3.26.2: tasks and results through RabbitMQ alone."""

__version__ = "0.6.12"
