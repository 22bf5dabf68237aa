from core.schema.step import Step


async def refuse_unsafe(connection, step: Step) -> None: ...
