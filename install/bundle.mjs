// Bundles what lib/report/vega.mts exports into dist/report/vega.mjs, so that who installs the package gets one file in
// the place of some fifty packages, and puts their licences beside it.
import fs from 'node:fs';
import path from 'node:path';
import { build } from 'esbuild';

const root = path.resolve(import.meta.dirname, '..');
const output = path.join(root, 'dist', 'report', 'vega.mjs');

const { metafile } = await build({
    absWorkingDir: root,
    entryPoints: ['lib/report/vega.mts'],
    outfile: output,
    allowOverwrite: true,
    bundle: true,
    format: 'esm',
    platform: 'node',
    minify: true,
    legalComments: 'none', // the licences are in a file
    metafile: true
});

const folders = Object.keys(metafile.inputs).map((file) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(file)?.[0]);
const packages = [...new Set(folders.filter((folder) => folder !== undefined))].sort();
const licences = packages.map((folder) => {
    const { name, version } = JSON.parse(fs.readFileSync(path.join(root, folder, 'package.json'), 'utf8'));
    const [file] = fs.readdirSync(path.join(root, folder)).filter((one) => /^licen[cs]e/i.test(one));
    if (!file) {
        throw new Error(`${name} has no licence to be put beside ${output}`);
    }
    return `${name} ${version}\n\n${fs.readFileSync(path.join(root, folder, file), 'utf8').trim()}\n`;
});
fs.writeFileSync(output.replace(/mjs$/, 'licences.txt'), licences.join(`\n${'-'.repeat(80)}\n\n`));
