"""All use cases over memory adapters, for two users, with a worker that runs or is stepped."""

from tests.harness import Harness, settings


class House(Harness):
    """A harness for Ada and Zoë."""

    def __init__(self, *, auto: bool = True, activation_timeout: float = 10.0) -> None:
        given = settings(
            users="ada:Ada Lovelace,Zoë:Zoë Ω",
            activation_timeout=activation_timeout,
            model_url="https://model.example",
        )
        super().__init__(given, auto=auto)
