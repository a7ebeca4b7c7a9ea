// node-llama-cpp's packages of prebuilt backends are optional: users leave some or all of them out.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { temporaryFolder } from '../models';

const folder = temporaryFolder();
const names: Partial<Record<string, string>> = { linux: 'linux', darwin: 'mac', win32: 'win' };
const platform = `${names[process.platform] ?? process.platform}-${process.arch}`;

/** Writes files into the node_modules of a project that has blockpruner's install/packages.js, and asks that. */
function packagesWith(...installed: string[]) {
    fs.rmSync(path.join(folder, 'node_modules'), { recursive: true, force: true });
    for (const file of ['node-llama-cpp/package.json', 'node-llama-cpp/dist/index.js', ...installed]) {
        const name = path.join(folder, 'node_modules', file);
        fs.mkdirSync(path.dirname(name), { recursive: true });
        fs.writeFileSync(name, file.endsWith('.json') ? '{ "main": "dist/index.js" }' : '');
    }
    fs.copyFileSync(path.resolve(__dirname, '../../install/packages.js'), path.join(folder, 'packages.cjs'));
    const print = `console.log(JSON.stringify(require('./packages.cjs')))`;
    return JSON.parse(execFileSync(process.execPath, ['-e', print], { cwd: folder, encoding: 'utf8' })) as {
        bundle: string;
        backendFolders: Record<string, string>;
        prebuiltFolder: string;
        prebuiltPackage: string;
    };
}

/** The files of a package of backends. */
function backends(name: string): string[] {
    return ['package.json', 'dist/index.js', `bins/${name}/backend`].map((file) => `@node-llama-cpp/${name}/${file}`);
}

const inside = (file: string) => path.relative(fs.realpathSync(path.join(folder, 'node_modules')), file);

test('without any backends, the source is still found', () => {
    const { bundle, backendFolders, prebuiltFolder, prebuiltPackage } = packagesWith();
    expect(inside(bundle)).toBe(path.join('node-llama-cpp', 'llama', 'gitRelease.bundle'));
    expect(backendFolders).toEqual({ cpu: '', cuda: '', vulkan: '', metal: '' });
    expect(prebuiltFolder).toBe('');
    expect(prebuiltPackage).toMatch(`@node-llama-cpp/${platform}`);
});

test('backends that are installed are found, each without the others', () => {
    const { prebuiltPackage } = packagesWith();
    const cpu = prebuiltPackage.replace('@node-llama-cpp/', '');
    const onlyCpu = packagesWith(...backends(cpu));
    expect(inside(onlyCpu.prebuiltFolder)).toBe(path.join('@node-llama-cpp', cpu, 'bins', cpu));
    expect(onlyCpu.backendFolders).toMatchObject({ cpu: onlyCpu.prebuiltFolder, cuda: '', vulkan: '' });

    const cuda = `${platform}-cuda`;
    const onlyCuda = packagesWith(...backends(cuda));
    expect(inside(onlyCuda.backendFolders.cuda!)).toBe(path.join('@node-llama-cpp', cuda, 'bins', cuda));
    expect(onlyCuda.prebuiltFolder).toBe('');
});

test('README.md names the version of the backends that blockpruner needs', () => {
    const read = (file: string) => fs.readFileSync(path.resolve(__dirname, '../..', file), 'utf8');
    const manifest = JSON.parse(read('package.json')) as { dependencies: Record<string, string> };
    const version = manifest.dependencies['node-llama-cpp']!;
    const named = Array.from(read('README.md').matchAll(/@node-llama-cpp\/[\w-]+@(\S+)/g), ([, at]) => at);
    expect(new Set(named)).toEqual(new Set([version]));
    expect(read('README.md')).toContain(`blockpruner has, ${version}.`);
});

test('the packages that users get are listed with their licences, and those whose scripts run named in SECURITY.md', () => {
    const root = path.resolve(__dirname, '../..');
    const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm';
    const printed = execFileSync(npm, ['run', '--silent', 'sbom'], { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 26 });
    const { components } = JSON.parse(printed) as {
        components: { group?: string; name: string; licenses?: object[] }[];
    };
    const names = new Set(components.map(({ group, name }) => (group ? `${group}/${name}` : name)));
    expect([...names]).toEqual(expect.arrayContaining(['node-llama-cpp', 'zod', 'yargs']));
    expect(components.filter(({ licenses = [] }) => licenses.length === 0)).toEqual([]);

    const lock = JSON.parse(fs.readFileSync(path.join(root, 'package-lock.json'), 'utf8')) as {
        packages: Record<
            string,
            { hasInstallScript?: boolean; dev?: boolean; optional?: boolean; devOptional?: boolean; peer?: boolean }
        >;
    };
    const always = Object.entries(lock.packages)
        .filter(([, { dev, optional, devOptional, peer }]) => !dev && !optional && !devOptional && !peer)
        .map(([folder]) => folder.split('node_modules/').at(-1)!)
        .filter((name) => name !== '');
    expect(always.filter((name) => !names.has(name))).toEqual([]);
    const bundled = fs.readFileSync(path.join(root, 'dist', 'report', 'vega.licences.txt'), 'utf8');
    for (const name of ['vega', 'vega-lite', 'd3-array']) {
        expect(bundled).toMatch(new RegExp(`^${name} \\d+\\.`, 'm'));
        expect(names).not.toContain(name);
    }

    const withScripts = Object.entries(lock.packages)
        .filter(([folder, { hasInstallScript, dev }]) => folder !== '' && hasInstallScript && !dev)
        .map(([folder]) => folder.split('node_modules/').at(-1)!);
    const security = fs.readFileSync(path.join(root, 'SECURITY.md'), 'utf8');
    expect(withScripts.filter((name) => !security.includes(`\`${name}\``))).toEqual([]);
});
