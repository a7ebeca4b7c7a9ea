import fs from 'node:fs';
import path from 'node:path';
import { readGguf } from '../../lib/index.js';
import { hashGguf } from '../../lib/runtime/gguf.js';
import { temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();

// it has holes, but on file systems that know none
(process.platform === 'win32' ? test.skip : test)('the hash of a large file stops when it is told to', async () => {
    const large = path.join(folder, 'large.gguf');
    fs.writeFileSync(large, '');
    fs.truncateSync(large, 2 ** 40); // 1 TiB takes a quarter of an hour or more
    const stop = new AbortController();
    setTimeout(() => stop.abort(new Error('enough')), 300);
    await expect(hashGguf({ ...(await readGguf(tiny)), files: [large] }, stop.signal)).rejects.toThrow('enough');
});
