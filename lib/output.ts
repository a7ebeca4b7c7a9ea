// The files that are written: each appears under its name only when it is complete.
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { BlockprunerError, messageOf, option } from './errors.js';

const PARTIAL = '.blockpruner-partial-';
const TEMPORARY = 'blockpruner-temporary-';

/**
 * Finds out, before any long work, that a file can be written.
 * @param inputs files that must not be replaced, such as those of the model
 * @param what what the file is, for messages
 * @throws BlockprunerError if it exists (and `force` is not set), is an input, or its folder can't be written to
 */
export async function checkOutput(
    output: string,
    inputs: readonly string[],
    force = false,
    what = 'output'
): Promise<void> {
    if (output === '') {
        throw new BlockprunerError('OUTPUT', `the ${what} has no name: give a file name`);
    }
    const folder = path.dirname(path.resolve(output));
    const isThere = await fs.promises.lstat(output).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENAMETOOLONG') {
            throw new BlockprunerError('OUTPUT', `the name of the ${what} ${output} is too long for the file system`);
        }
        return undefined; // what else there is to say shows when its folder is tried
    });
    const stat = await fs.promises.stat(output, { bigint: true }).catch(() => undefined);
    if (isThere && !stat && !force) {
        const to = await fs.promises.readlink(output);
        throw new BlockprunerError(
            'OUTPUT',
            `the ${what} ${output} is a link to ${to}, which isn't there: choose another name or give ` +
                option('force', true)
        );
    }
    if (stat) {
        for (const file of inputs) {
            const source = await fs.promises.stat(file, { bigint: true });
            if (source.ino === stat.ino && source.dev === stat.dev) {
                throw new BlockprunerError('OUTPUT', `the ${what} ${output} is the model itself: choose another name`);
            }
        }
        if (!stat.isFile()) {
            throw new BlockprunerError(
                'OUTPUT',
                `the ${what} ${output} is ${stat.isDirectory() ? 'a folder' : 'no regular file'}: give a file name`
            );
        }
        if (!force) {
            throw new BlockprunerError(
                'OUTPUT',
                `the ${what} ${output} exists: choose another name or give ${option('force', true)}`
            );
        }
    }
    await checkWritable(folder);
}

/**
 * @param names of the files that are to be written, by what each is, for messages
 * @throws BlockprunerError if two of them have the same name
 */
export function checkNames(names: Record<string, string | undefined>): void {
    const files = Object.entries(names).flatMap(([what, name]) => (name === undefined ? [] : [{ what, name }]));
    for (const [i, { what, name }] of files.entries()) {
        const same = files.slice(i + 1).find((other) => path.resolve(name) === path.resolve(other.name));
        if (same) {
            const message = `the ${what} and the ${same.what} are both ${name}: choose two names`;
            throw new BlockprunerError('ARGUMENT', message);
        }
    }
}

/** @throws BlockprunerError if files can't be written to a folder */
export async function checkWritable(folder: string): Promise<void> {
    // Writing a file is the only test that holds for root, for read-only file systems and for Windows alike.
    const probe = partialIn(folder, '');
    try {
        await fs.promises.writeFile(probe, '');
        await fs.promises.unlink(probe);
    } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        const reasons: Record<string, string> = { ENOENT: 'there is no such folder', ENOTDIR: 'it is no folder' };
        const why = reasons[code ?? ''] ?? messageOf(error);
        throw new BlockprunerError('OUTPUT', `can't write to the folder ${folder}: ${why}`);
    }
}

/**
 * Makes a folder for temporary files, and deletes those that killed processes have left.
 * @throws BlockprunerError if there is no place for one
 */
export async function makeTemporaryFolder(): Promise<string> {
    try {
        try {
            removeDead(os.tmpdir(), TEMPORARY);
        } catch {
            // a folder may be one that can be written to and not listed
        }
        return await fs.promises.mkdtemp(path.join(os.tmpdir(), `${TEMPORARY}${host}-${process.pid}-`));
    } catch (error) {
        throw temporaryError(error);
    }
}

/** What to say of temporary files that can't be written. */
export function temporaryError(error: unknown): BlockprunerError {
    const variable = process.platform === 'win32' ? 'TEMP' : 'TMPDIR';
    return new BlockprunerError(
        'OUTPUT',
        `can't write temporary files in ${os.tmpdir()}: ${messageOf(error)}; set ${variable} to a folder with room`
    );
}

/**
 * Makes a name that no file has yet, for a file that isn't complete. It says which process of which computer writes it.
 */
export function partialIn(folder: string, ending: string): string {
    return path.join(folder, `${PARTIAL}${host}-${process.pid}-${crypto.randomUUID()}${ending}`);
}

const host = os.hostname().replace(/\W/g, '').slice(0, 40);

/** Deletes what processes of this computer that were killed have left in a folder. */
export function removeDeadPartials(folder: string): void {
    removeDead(folder, PARTIAL);
}

function removeDead(folder: string, prefix: string): void {
    for (const name of fs.readdirSync(folder).filter((one) => one.startsWith(prefix))) {
        const [owner, pid] = name.slice(prefix.length).split('-');
        if (owner === host && !isAlive(Number(pid))) {
            try {
                fs.rmSync(path.join(folder, name), { recursive: true, force: true });
            } catch {
                // it is another user's
            }
        }
    }
}

function isAlive(pid: number): boolean {
    try {
        return process.kill(pid, 0);
    } catch (error) {
        return (error as NodeJS.ErrnoException).code !== 'ESRCH'; // it may be another user's
    }
}

/** A complete file that doesn't have its name yet. */
export interface Draft {
    /** The file as it is called now, beside its place. */
    readonly file: string;
    /**
     * Waits until the file is on the disk.
     * @throws BlockprunerError if it can't be written there
     */
    flushed(): Promise<void>;
    /**
     * Gives the file its name, in one step, once it is on the disk.
     * @throws BlockprunerError if it can't be, or the name was taken meanwhile and `force` was not set
     */
    publish(): Promise<void>;
    /** Deletes the file if it has not been published. */
    discard(): Promise<void>;
}

/**
 * Begins to flush a file that is complete. What is to be done with it before it gets its name needn't wait for the
 * disk, which has much to write of a large one.
 * @param what what the file is, for messages
 */
export async function draftOf(
    file: string,
    name: string,
    { force, what = 'output' }: { force?: boolean | undefined; what?: string | undefined }
): Promise<Draft> {
    const handle = await fs.promises.open(file, 'r+');
    const flushing = handle
        .sync()
        .finally(() => handle.close())
        .catch((error: unknown) => {
            throw new BlockprunerError('OUTPUT', `can't write the ${what} ${name}: ${messageOf(error)}`);
        });
    // Who wants the file hears of an error. Nobody may, and what nobody hears of would end the process.
    flushing.catch(() => undefined);
    return {
        file,
        flushed: () => flushing,
        async publish() {
            await flushing;
            giveName(file, name, force, what);
        },
        discard: () => fs.promises.rm(file, { force: true })
    };
}

/**
 * Gives a complete file its name, in one step.
 * @param what what the file is, for messages
 * @throws BlockprunerError if the name was taken meanwhile, and `force` is not set
 */
function giveName(partial: string, name: string, force: boolean | undefined, what: string): void {
    if (!force) {
        linkOrCheck(partial, name, what);
    }
    rename(partial, name);
    fs.rmSync(partial, { force: true }); // where both names are links to one file, renaming leaves both
}

/** Windows refuses to replace a file that another process, such as a browser, reads at that moment. */
function rename(from: string, to: string): void {
    for (let left = process.platform === 'win32' ? 20 : 0; ; left--) {
        try {
            fs.renameSync(from, to);
            return;
        } catch (error) {
            if (left === 0 || !['EPERM', 'EACCES', 'EBUSY'].includes((error as NodeJS.ErrnoException).code ?? '')) {
                throw error;
            }
            Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);
        }
    }
}

/**
 * Takes a name for a file, and fails if it was taken meanwhile. File systems without links are checked shortly before.
 */
function linkOrCheck(file: string, name: string, what: string): void {
    try {
        fs.linkSync(file, name);
    } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'EEXIST' || fs.existsSync(name)) {
            throw new BlockprunerError(
                'OUTPUT',
                `the ${what} ${name} exists: choose another name or give ${option('force', true)}`
            );
        }
    }
}

/**
 * Writes a small file, such as a page or a table.
 * @param what what the file is, for messages
 * @throws BlockprunerError if it can't be written, or exists and `force` is not set. The file is then as it was before.
 */
export function writeText(
    file: string,
    text: string,
    { force = false, what = 'file' }: { force?: boolean | undefined; what?: string } = {}
): void {
    const partial = partialIn(path.dirname(path.resolve(file)), path.extname(file));
    try {
        fs.writeFileSync(partial, text);
        giveName(partial, file, force, what);
    } catch (error) {
        fs.rmSync(partial, { force: true });
        throw error instanceof BlockprunerError
            ? error
            : new BlockprunerError('OUTPUT', `can't write the ${what} ${file}: ${messageOf(error)}`);
    }
}
