// docs/api.md is made from the docstrings in lib/, so it can't be edited and mustn't be behind them.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { temporaryFolder } from '../models';

const root = path.resolve(__dirname, '../..');
const folder = temporaryFolder();

test('docs/api.md is what `npm run docs` makes of the docstrings', () => {
    const typedoc = path.join(root, 'node_modules', 'typedoc', 'bin', 'typedoc');
    execFileSync(process.execPath, [typedoc, '--out', folder, '--logLevel', 'Error'], { cwd: root, stdio: 'inherit' });
    const read = (file: string) => fs.readFileSync(file, 'utf8').split('\n');
    expect(read(path.join(root, 'docs', 'api.md'))).toEqual(read(path.join(folder, 'api.md')));
});
