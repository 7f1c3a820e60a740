{# A source at the version that the caller pins (VERSION AS OF); an error without one. #}
{% macro pinned(schema, table) -%}
  {%- set relation = source(schema, table) -%}
  {%- set version = var('pins').get(schema ~ '.' ~ table) -%}
  {%- if version is none and execute and flags.WHICH in ('run', 'build', 'compile', 'test', 'show') -%}
    {{ exceptions.raise_compiler_error("no pinned version of " ~ schema ~ "." ~ table ~ ": pass --vars '{pins: {" ~ schema ~ "." ~ table ~ ": N}}'") }}
  {%- endif -%}
  {{ relation }} VERSION AS OF {{ version }}
{%- endmacro %}

{# The instant (UTC) before which a source row must be known. #}
{% macro as_of() -%} timestamp '{{ var('builds', {}).get(model.name, {}).get('as_of') }}' {%- endmacro %}
