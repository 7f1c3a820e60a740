{#
  Feature tables are built by the local day of knowledge time, and only the days whose inputs changed are built again.
  The caller names them in var `builds`, per model {whole, ranges: [[first, last], ...], origin}, ranges inclusive.
#}

{# Replaces days of the model's table in one commit, which keeps what they were made from (`origin`). #}
{% materialization days, adapter='spark' %}
  {%- set build = var('builds')[model.name] -%}
  {%- set target_relation = this.incorporate(type='table') -%}
  {{ run_hooks(pre_hooks) }}
  {%- if build.ranges -%}
    {#- in the statement, because models that are built at the same time share one session -#}
    {%- set origin = build.origin | replace('\\', '\\\\') | replace("'", "\\'") -%}
    {%- call statement('main') -%}
      {%- if build.whole -%}
        create or replace table {{ target_relation }} {{ file_format_clause() }} options (userMetadata = '{{ origin }}')
        {{ partition_cols(label="partitioned by") }} {{ location_clause() }} as
      {%- else -%}
        insert into {{ target_relation }} with (userMetadata = '{{ origin }}')
        replace where {{ in_days('day', build.ranges) }}
      {%- endif %}
      {{ compiled_code }}
    {%- endcall -%}
  {%- else -%}
    {%- call noop_statement('main', 'UNCHANGED') -%} {%- endcall -%}
  {%- endif -%}
  {{ run_hooks(post_hooks) }}
  {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}

{# Whether a date lies in one of the ranges. #}
{% macro in_days(column, ranges) -%}
  (
  {%- for first, last in ranges -%}
    {{ " or " if not loop.first }}{{ column }} between date'{{ first }}' and date'{{ last }}'
  {%- else -%} 1 = 0
  {%- endfor -%}
  )
{%- endmacro %}

{# Whether a row belongs to the days of this build. #}
{% macro built_days(column='day') -%}
  {{ in_days(column, var('builds', {}).get(model.name, {}).get('ranges', [])) }}
{%- endmacro %}

{#
  Whether a source row is read for the days of this build: for meta.seen_within_hours of the model's config, by which
  featurestore/incremental.py also finds the days to build again after a change.
#}
{% macro seen_within(column='day') -%}
  {#- one day more, because a local day can have 23 or 25 hours -#}
  {%- set back = modules.datetime.timedelta(days=model.config.meta.get('seen_within_hours', 0) // 24 + 1) -%}
  {%- set ranges = [] -%}
  {%- for first, last in var('builds', {}).get(model.name, {}).get('ranges', []) -%}
    {%- do ranges.append([(modules.datetime.datetime.fromisoformat(first) - back).date().isoformat(), last]) -%}
  {%- endfor -%}
  {{ in_days(column, ranges) }}
{%- endmacro %}

{# Tests read the days of this build only; others were tested when they were built. #}
{% macro get_where_subquery(relation) -%}
  {%- set build = var('builds', {}).get(relation.identifier) -%}
  {%- if build -%}
    (select * from {{ relation }} where {{ in_days('day', build.ranges) }}) built
  {%- else -%}
    {{ relation }}
  {%- endif -%}
{%- endmacro %}
