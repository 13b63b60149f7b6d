"""Lets the `type` of a section also name a plugin (`sppo_ray.plugins`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic import ValidatorFunctionWrapHandler, WrapValidator

from sppo_ray import plugins
from sppo_ray.settings import Settings


def or_plugin(kind: plugins.Kind, own: Any, settings_of: Callable[[str], type[Settings]]) -> WrapValidator:
    """Return the validator of a union `own` of settings with a `type`: a type that none of them has
    is looked up among the plugins, and `settings_of` it checks the section.
    """
    types = {model.model_fields["type"].default for model in get_args(own)}

    def validate(given: Any, validate_own: ValidatorFunctionWrapHandler) -> Any:
        asked = given.get("type") if isinstance(given, Mapping) else getattr(given, "type", None)
        if not isinstance(asked, str) or asked in types or asked not in plugins.names(kind):
            return validate_own(given)
        return settings_of(asked).model_validate(given)

    return WrapValidator(validate)


def declared_settings(kind: plugins.Kind, name: str, base: type[Settings]) -> type[Settings]:
    """Return the class `settings` of a plugin, a subclass of `base`. Raises ValueError when it has
    none of this name.
    """
    settings = getattr(plugins.load(kind, name), "settings", None)
    is_settings = isinstance(settings, type) and issubclass(settings, base)
    if not is_settings or "type" not in settings.model_fields:
        raise ValueError(
            f"the plugin {name!r} has no `settings`, a subclass of sppo_ray.{base.__name__} with the "
            f'field type: Literal["{name}"] = "{name}"'
        )
    if settings.model_fields["type"].default != name:
        raise ValueError(
            f"the settings of the plugin {name!r} have the type {settings.model_fields['type'].default!r}: "
            "give both the same name"
        )
    return settings
