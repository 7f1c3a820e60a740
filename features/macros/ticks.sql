{#
  Hourly ticks. A tick at hour H knows rows with available_at <= H, so it may be used by any prediction at or after H.
  Hours are counted since the epoch (UTC), which makes windows indifferent to daylight saving.
#}
{% macro tick_hour(instant) -%} cast(ceil(unix_micros({{ instant }}) / 3600000000.0) as bigint) {%- endmacro %}

{#
  One row per entity and hour in which any window's content changes: when a row enters a window, and when it leaves.
    entity    column that identifies the entity
    events    relation or CTE with that column, `available_at` and the measured columns
    measures  {name: SQL aggregate input}; sums are taken, `n` counts rows
    windows   hours, ascending; the result has NAME_WINDOWh per measure and n_WINDOWh
#}
{% macro window_ticks(entity, events, measures, windows) %}
  per_hour as (
    select
      {{ entity }},
      {{ tick_hour('available_at') }} as hour,
      count(*) as n
      {%- for name, input in measures.items() %},
      sum({{ input }}) as {{ name }}
      {%- endfor %}
    from {{ events }}
    where {{ entity }} is not null and available_at <= {{ as_of() }}
    group by 1, 2
  ),
  marks as (
    select {{ entity }}, hour from per_hour
    {%- for window in windows %}
    union
    select {{ entity }}, hour + {{ window }} from per_hour
    {%- endfor %}
  ),
  summed as (
    select
      {{ entity }},
      hour
      {%- for window in windows %}
      {%- for name in ['n'] + measures.keys() | list %},
      coalesce(sum({{ name }}) over (
        partition by {{ entity }} order by hour range between {{ window - 1 }} preceding and current row
      ), 0) as {{ name }}_{{ window }}h
      {%- endfor %}
      {%- endfor %}
    from marks left join per_hour using ({{ entity }}, hour)
  ),
  ticks as (
    select *, timestamp_seconds(hour * 3600) as event_timestamp
    from summed
    where hour <= floor(unix_seconds({{ as_of() }}) / 3600)
  )
{% endmacro %}

{# The columns every table carries. #}
{% macro tick_columns(entity) -%}
  {{ entity }},
  event_timestamp,
  event_timestamp as available_at,
  '{{ invocation_id }}' as ingestion_run_id
{%- endmacro %}
