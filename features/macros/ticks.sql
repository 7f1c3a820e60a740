{#
  Hourly ticks. A tick at hour H reads rows with available_at < H, so any prediction at or after H may use it.
  Hours are counted since the epoch (UTC), so daylight saving does not change windows.
  A local day has the ticks after its midnight up to and including the next midnight.
#}
{% macro tick_hour(instant) -%} (unix_micros({{ instant }}) div 3600000000 + 1) {%- endmacro %}

{# The ticks up to the build's instant, in the days of this build. #}
{% macro due_ticks(hours) -%}
  select * from (
    select
      *,
      timestamp_seconds(hour * 3600) as event_timestamp,
      greatest(
        date'{{ var('first_day') }}',
        to_date(from_utc_timestamp(timestamp_seconds(hour * 3600 - 1), '{{ var('timezone') }}'))
      ) as day
    from {{ hours }}
    where hour * 3600 <= unix_seconds({{ as_of() }})
  ) where {{ built_days() }}
{%- endmacro %}

{#
  One row per entity and hour in which a row enters or leaves any window.
    entity    the entity's key: a column, or a list of columns
    events    relation or CTE with these columns, `available_at` and the measured columns
    measures  {name: SQL aggregate input}; sums are taken, `n` counts rows
    windows   hours, ascending; the result has NAME_WINDOWh per measure and n_WINDOWh
    newest    {name: SQL input}; the result has the value of the newest row within the longest window
    marks     relation or CTE with the entity and `hour`: further hours with a row
#}
{% macro window_ticks(entity, events, measures, windows, newest={}, marks=none) %}
  {%- set keys = entity_columns(entity) %}
  per_hour as (
    select
      {{ keys }},
      {{ tick_hour('available_at') }} as hour,
      count(*) as n
      {%- for name, input in measures.items() %},
      sum({{ input }}) as {{ name }}
      {%- endfor %}
      {%- for name, input in newest.items() %},
      max(struct(available_at as at, {{ input }} as value)) as {{ name }}
      {%- endfor %}
    from {{ events }}
    where {{ keys | replace(', ', ' is not null and ') }} is not null and available_at < {{ as_of() }}
    group by {{ keys }}, hour
  ),
  marks as (
    select {{ keys }}, hour from per_hour
    {%- for window in windows %}
    union
    select {{ keys }}, hour + {{ window }} from per_hour
    {%- endfor %}
    {%- if marks %}
    union
    select {{ keys }}, hour from {{ marks }}
    {%- endif %}
  ),
  summed as (
    select
      {{ keys }},
      hour
      {%- for window in windows %}
      {%- for name in ['n'] + measures.keys() | list %},
      coalesce(sum({{ name }}) over (
        partition by {{ keys }} order by hour range between {{ window - 1 }} preceding and current row
      ), 0) as {{ name }}_{{ window }}h
      {%- endfor %}
      {%- endfor %}
      {%- for name in newest %},
      if(
        count(n) over (
          partition by {{ keys }} order by hour range between {{ windows[-1] - 1 }} preceding and current row
        ) > 0,
        last_value({{ name }}) ignore nulls over (partition by {{ keys }} order by hour).value,
        null
      ) as {{ name }}
      {%- endfor %}
    from marks left join per_hour using ({{ keys }}, hour)
  ),
  ticks as (
    {{ due_ticks('summed') }}
  )
{% endmacro %}

{#
  `window_ticks` over the grid that the model declares in schema.yml, meta.grid:
    entity   [columns]
    prefix   of the features' names
    count    the statistic that counts rows; any other is the mean of the measure of that name (without _share)
    windows  {HOURSh: [statistics]}, ascending
  `grid_columns` are the features PREFIX_STATISTIC_HOURSh, named as their Feast fields are.
#}
{% macro feature_grid(events, measures, newest={}, marks=none) -%}
  {%- set grid = declared_grid() -%}
  {%- set windows = [] -%}
  {%- for window in grid.windows -%} {%- do windows.append(window[:-1] | int) -%} {%- endfor -%}
  {{ window_ticks(grid.entity, events, measures, windows, newest, marks) }}
{%- endmacro %}

{% macro grid_columns() -%}
  {%- set grid = declared_grid() -%}
  {%- for window, statistics in grid.windows.items() -%}
  {%- set outer = loop -%}
  {%- for statistic in statistics -%}
  {%- if statistic == grid.get('count') -%}
  cast(n_{{ window }} as double)
  {%- else -%}
  {{ statistic | replace('_share', '') }}_{{ window }} / nullif(n_{{ window }}, 0)
  {%- endif %} as {{ grid.prefix }}_{{ statistic }}_{{ window }}
  {%- if not (outer.last and loop.last) %},
  {% endif -%}
  {%- endfor -%}
  {%- endfor -%}
{%- endmacro %}

{# The model's grid in schema.yml; a placeholder while dbt parses, when it is not there yet. #}
{% macro declared_grid() -%}
  {{ return(model.config.get('meta', {}).get('grid', {'entity': ['unknown'], 'prefix': 'unknown', 'windows': {'1h': ['unknown']}})) }}
{%- endmacro %}

{% macro entity_columns(entity) -%}
  {{ return(entity if entity is string else entity | join(', ')) }}
{%- endmacro %}

{# The columns that every table has. #}
{% macro tick_columns(entity=none) -%}
  {{ entity_columns(entity or declared_grid().entity) }},
  event_timestamp,
  event_timestamp as available_at,
  '{{ invocation_id }}' as ingestion_run_id,
  day
{%- endmacro %}
