{# A source at the version pinned by the caller. Compiles to VERSION AS OF; refuses to read "latest". #}
{% macro pinned(schema, table) -%}
  {%- set relation = source(schema, table) -%}
  {%- set version = var('pins').get(schema ~ '.' ~ table) -%}
  {%- if version is none and execute and flags.WHICH in ('run', 'build', 'compile', 'test', 'show') -%}
    {{ exceptions.raise_compiler_error("no pinned version of " ~ schema ~ "." ~ table ~ ": pass --vars '{pins: {" ~ schema ~ "." ~ table ~ ": N}}'") }}
  {%- endif -%}
  {{ relation }} VERSION AS OF {{ version }}
{%- endmacro %}

{# The instant up to which the features may know anything, UTC. #}
{% macro as_of() -%} timestamp '{{ var('builds', {}).get(model.name, {}).get('as_of') }}' {%- endmacro %}
