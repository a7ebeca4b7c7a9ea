import fs from 'node:fs';
import path from 'node:path';
import { BlockprunerError, messageOf } from '../errors.js';
import { removeDeadPartials } from '../output.js';
import { loadAddon, type Addon } from '../runtime/addon.js';

/**
 * Does some work for as long as no other process works for the same output, and deletes first what killed ones left.
 * What says so is a file beside it, which the system gives free when the process ends, however it ends.
 * @throws BlockprunerError if another process has the output
 */
export async function withLock<T>(output: string, work: () => Promise<T>): Promise<T> {
    const addon = await loadAddon();
    const file = `${output}.lock`;
    const fd = take(file, output, addon);
    try {
        removeDeadPartials(path.dirname(path.resolve(output)));
        return await work();
    } finally {
        fs.rmSync(file, { force: true }); // while it is ours: afterwards it may be another's
        fs.closeSync(fd);
    }
}

function take(file: string, output: string, addon: Addon): number {
    for (;;) {
        let fd: number;
        try {
            fd = fs.openSync(file, 'a');
        } catch (error) {
            throw new BlockprunerError('OUTPUT', `can't write beside the output ${output}: ${messageOf(error)}`);
        }
        if (fs.fstatSync(fd).size > 0) {
            fs.closeSync(fd);
            throw new BlockprunerError('OUTPUT', `${file} is a file of something else: choose another output`);
        }
        if (!addon.lockFile(fd)) {
            fs.closeSync(fd);
            const message = `another process is working for the output ${output}: wait for it, or choose another name`;
            throw new BlockprunerError('OUTPUT', message);
        }
        if (fs.statSync(file, { throwIfNoEntry: false })?.ino === fs.fstatSync(fd).ino) {
            return fd;
        }
        fs.closeSync(fd); // its owner deleted it between our two steps
    }
}
