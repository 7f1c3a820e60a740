{#
  Feature tables are built by the local day of knowledge, and only the days whose inputs changed are built again.
  The caller says which: var `builds`, per model {whole, ranges: [[first, last], ...], origin}. A range is inclusive.
#}

{# The model's table, with its days replaced in one commit that says what they were made from (`origin`). #}
{% materialization days, adapter='spark' %}
  {%- set build = var('builds')[model.name] -%}
  {%- set target_relation = this.incorporate(type='table') -%}
  {{ run_hooks(pre_hooks) }}
  {%- if build.ranges -%}
    {#- said in the statement, not set for the session, which models that are built at the same time share -#}
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

{# Whether a row belongs to the days that are built now. #}
{% macro built_days(column='day') -%}
  {{ in_days(column, var('builds', {}).get(model.name, {}).get('ranges', [])) }}
{%- endmacro %}

{#
  Whether a source row can be seen from a row of the days that are built now. The model's config says for how long:
  meta.seen_within_hours, which also tells which days a changed source row makes old (featurestore/incremental.py).
#}
{% macro seen_within(column='day') -%}
  {#- one day more: a local day has 23 or 25 hours once a year -#}
  {%- set back = modules.datetime.timedelta(days=model.config.meta.get('seen_within_hours', 0) // 24 + 1) -%}
  {%- set ranges = [] -%}
  {%- for first, last in var('builds', {}).get(model.name, {}).get('ranges', []) -%}
    {%- do ranges.append([(modules.datetime.datetime.fromisoformat(first) - back).date().isoformat(), last]) -%}
  {%- endfor -%}
  {{ in_days(column, ranges) }}
{%- endmacro %}

{# Tests look at the days that were built now; the others were tested when they were. #}
{% macro get_where_subquery(relation) -%}
  {%- set build = var('builds', {}).get(relation.identifier) -%}
  {%- if build -%}
    (select * from {{ relation }} where {{ in_days('day', build.ranges) }}) built
  {%- else -%}
    {{ relation }}
  {%- endif -%}
{%- endmacro %}
