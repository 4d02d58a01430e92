// The colours of heatmaps, from low to high: viridis, as in export/model/heatmap.py, which names the source.
export const COLOURS = [
  "440154", "481a6c", "472f7d", "414487", "39568c", "31688e", "2a788e", "23888e",
  "1f988b", "22a884", "35b779", "54c568", "7ad151", "a5db36", "d2e21b", "fde725",
];
