// Draws dashboard.json with Grafana's own components, in Grafana's 24-column layout, from a Prometheus's HTTP API.
// The page's query says where: ?prometheus=URL&from=UNIX&to=UNIX. When all is drawn, <body data-drawn> is set.
import { createRoot } from 'react-dom/client';
import {
  createDataFrame,
  createTheme,
  EventBusSrv,
  FieldType,
  getDisplayProcessor,
  LoadingState,
  ReducerID,
  ThemeContext,
  reduceField,
} from '@grafana/data';
import {
  BigValue,
  BigValueColorMode,
  BigValueGraphMode,
  GlobalStyles,
  PanelChrome,
  PanelContextProvider,
  TimeSeries,
} from '@grafana/ui';

const page = new URLSearchParams(location.search);
const theme = createTheme({ colors: { mode: page.get('theme') } });
const prometheus = page.get('prometheus');
const from = Number(page.get('from'));
const to = Number(page.get('to'));
const COLUMN = 1560 / 24;
const ROW = 38;
const GAP = 8;
const STEP = Math.max(1, Math.round((to - from) / 240));
const VALUES = { $__rate_interval: `${Math.max(20, 4 * STEP)}s`, $cluster: '.*', $release: 'aoai-worker', $namespace: '.*', $queue: '.*', $deployment: '.*', $pod: '.*' };

const withValues = (expression) =>
  Object.entries(VALUES).reduce((text, [name, value]) => text.replaceAll(name, value), expression);

const legendOf = (format, labels) => format.replace(/\{\{(\w+)\}\}/g, (_, label) => labels[label] ?? '').trim();

async function ask(target) {
  const query = new URLSearchParams({ query: withValues(target.expr), start: from, end: to, step: STEP });
  const answer = await fetch(`${prometheus}/api/v1/query_range?${query}`);
  const body = await answer.json();
  if (body.status !== 'success') throw new Error(`${target.expr}: ${body.error}`);
  return body.data.result.map(({ metric, values }) => ({ name: legendOf(target.legendFormat, metric), values }));
}

// every series on the same points in time, with gaps where it has none
function frameOf({ name, values }, panel, place) {
  const at = new Map(values.filter(([, value]) => value !== 'NaN').map(([time, value]) => [time, Number(value)]));
  const times = [];
  for (let time = from; time <= to; time += STEP) times.push(time);
  const { defaults } = panel.fieldConfig;
  const config = { ...defaults, displayName: name, custom: { ...defaults.custom, lineInterpolation: 'linear' } };
  const frame = createDataFrame({
    refId: `${place}`,
    fields: [
      { name: 'time', type: FieldType.time, values: times.map((time) => time * 1000), config: {} },
      { name, type: FieldType.number, values: times.map((time) => at.get(time) ?? null), config },
    ],
  });
  const field = frame.fields[1];
  field.config.color = { mode: 'palette-classic' };
  field.state = { seriesIndex: place, displayName: name };
  field.display = getDisplayProcessor({ field, theme });
  frame.fields[0].display = getDisplayProcessor({ field: frame.fields[0], theme });
  return frame;
}

function Graph({ panel, frames, width, height }) {
  return (
    <TimeSeries
      width={width}
      height={height}
      frames={frames}
      timeRange={{ from: { valueOf: () => from * 1000 }, to: { valueOf: () => to * 1000 }, raw: {} }}
      timeZone="utc"
      legend={{ ...panel.options.legend, showLegend: true, calcs: panel.options.legend.calcs }}
    />
  );
}

function Number_({ panel, frames, width, height }) {
  const { defaults } = panel.fieldConfig;
  const field = frames[0]?.fields[1];
  if (!field) return <BigValue theme={theme} width={width} height={height} value={{ text: defaults.noValue, numeric: NaN }} />;
  field.config.color = { mode: 'thresholds' };
  const last = reduceField({ field, reducers: [ReducerID.lastNotNull] })[ReducerID.lastNotNull];
  const value = getDisplayProcessor({ field, theme })(last);
  const known = field.values.filter((one) => one !== null);
  const range = { min: Math.min(...known), max: Math.max(...known) };
  const sparkline = { y: { ...field, state: { range: { ...range, delta: range.max - range.min } } }, x: frames[0].fields[0] };
  return (
    <BigValue
      theme={theme}
      width={width}
      height={height}
      value={value}
      sparkline={sparkline}
      colorMode={BigValueColorMode.Value}
      graphMode={BigValueGraphMode.Area}
    />
  );
}

const place = ({ x, y, w, h }) => ({
  position: 'absolute',
  left: x * COLUMN + GAP / 2,
  top: y * ROW + GAP / 2,
  width: w * COLUMN - GAP,
  height: h * ROW - GAP,
});

function Panel({ panel, frames }) {
  const box = place(panel.gridPos);
  if (panel.type === 'row') {
    return <div style={{ ...box, font: '500 16px Inter, sans-serif', color: theme.colors.text.primary, paddingTop: 4 }}>⌄ {panel.title}</div>;
  }
  const Drawn = panel.type === 'stat' ? Number_ : Graph;
  return (
    <div style={box}>
      <PanelChrome title={panel.title} width={box.width} height={box.height} loadingState={LoadingState.Done}>
        {(width, height) =>
          panel.type === 'stat' || frames.length ? (
            <Drawn panel={panel} frames={frames} width={width} height={height} />
          ) : (
            <div data-empty={panel.title}>No data</div>
          )
        }
      </PanelChrome>
    </div>
  );
}

const context = { eventsScope: 'global', eventBus: new EventBusSrv() };

async function main() {
  const dashboard = await (await fetch('dashboard.json')).json();
  const panels = await Promise.all(
    dashboard.panels.map(async (panel) => {
      const series = (await Promise.all((panel.targets ?? []).map(ask))).flat();
      return { panel, frames: series.map((one, number) => frameOf(one, panel, number)) };
    })
  );
  const height = Math.max(...dashboard.panels.map(({ gridPos }) => gridPos.y + gridPos.h)) * ROW;
  createRoot(document.getElementById('root')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PanelContextProvider value={context}>
        <div style={{ position: 'relative', width: 1560, height, padding: GAP, background: theme.colors.background.canvas }}>
          {panels.map(({ panel, frames }, number) => (
            <Panel key={number} panel={panel} frames={frames} />
          ))}
        </div>
      </PanelContextProvider>
    </ThemeContext.Provider>
  );
  await new Promise((done) => setTimeout(done, 1500));
  document.body.dataset.drawn = `${height + 2 * GAP}`;
}

main().catch((error) => {
  document.body.dataset.failed = String(error.stack ?? error);
  document.body.innerText = String(error.stack ?? error);
});
