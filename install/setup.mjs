// Makes all that a command of this repository needs: the packages, the addon, the compiled TypeScript. It runs before
// anything is installed, so it uses nothing but Node.
//
//   node install/setup.mjs              makes all of it
//   node install/setup.mjs --types-only compiles the TypeScript, if its sources and the compiler are there; npm runs
//                                       this as `prepare`

import { spawnSync } from 'node:child_process';
import { existsSync, rmSync, statSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const at = (...names) => path.join(root, ...names);

function run(command, ...args) {
    const { status } = spawnSync(command, args, { cwd: root, stdio: 'inherit', shell: command.endsWith('.cmd') });
    if (status !== 0) {
        process.exit(status ?? 1);
    }
}

/**
 * Whether node_modules is as package-lock.json says. npm writes node_modules/.package-lock.json at the end of an
 * installation, and package-lock.json, if that changes, within two seconds of it.
 */
function packagesAreInstalled() {
    const installed = at('node_modules', '.package-lock.json');
    return existsSync(installed) && statSync(installed).mtimeMs > statSync(at('package-lock.json')).mtimeMs - 2000;
}

function installPackages() {
    // The scripts of packages don't run, since ours would build the addon and the TypeScript, which come next anyway.
    const args = ['ci', '--ignore-scripts', '--no-audit', '--no-fund'];
    if (process.env.npm_execpath) {
        run(process.execPath, process.env.npm_execpath, ...args);
    } else {
        run(process.platform === 'win32' ? 'npm.cmd' : 'npm', ...args);
    }
}

function compileTypes() {
    rmSync(at('dist'), { recursive: true, force: true });
    run(process.execPath, at('node_modules', 'typescript', 'bin', 'tsc'));
    run(process.execPath, at('install', 'bundle.mjs'));
}

if (process.argv.includes('--types-only')) {
    if (existsSync(at('lib')) && existsSync(at('node_modules', 'typescript'))) {
        compileTypes();
    }
} else {
    if (!packagesAreInstalled()) {
        installPackages();
    }
    run(process.execPath, at('install', 'build.js'));
    compileTypes();
}
