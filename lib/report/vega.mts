// What the charts need of Vega and Vega-Lite. The build bundles it with them (install/bundle.mjs), since the two and
// what they depend on take 18 MB, of which this is one.
export { Error as LOG_ERRORS, parse, View } from 'vega';
export { compile } from 'vega-lite';
